"""Evaluation sets have the official shape and mix, and the rule gives the official answers."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from homework.labels.eval_sets import balanced_pairs, build, multiple_choice, split_scenes, verify
from homework.labels.questions import QUESTION_TYPES, captions, classify_caption, classify_question, qa_pairs
from homework.labels.rows import DATA_DIR, MultiChoiceQADataset, VQADataset
from homework.labels.scene import Kart, Scene
from homework.utils.errors import InputError
from supertux.sample import MARKER
from tests.conftest import TRACKS, assert_one_line_error, write_frame

COMMANDS = (build, verify)


def make_scenes(n: int) -> dict[str, Scene]:
    """Make `n` views of 18 karts on 21 tracks; 60 % have one kart, as in the official split."""
    rng = random.Random(1)
    views = {}
    for number in range(n):
        boxes = [(65, 40, 85, 60)]
        for _ in range(rng.choices((0, 1, 2, 5), (60, 25, 10, 5))[0]):
            x, y = rng.randrange(0, 50), rng.randrange(0, 90)
            boxes.append((x, y, x + 8, y + 8))
        names = rng.sample(range(18), len(boxes))
        karts = tuple(Kart(name, f"kart_{name}", box) for name, box in zip(names, boxes, strict=True))
        views[f"valid/{number:05x}_00_im.jpg"] = Scene(f"track_{rng.randrange(21)}", karts)
    views["valid/0ffff_00_im.jpg"] = Scene("track_0", ())  # and one that holds none
    return views


VIEWS = make_scenes(600)


def test_pairs_are_balanced_true_and_on_different_images():
    rows = balanced_pairs(VIEWS, 120, seed=0)
    assert Counter(classify_question(row["question"]) for row in rows) == dict.fromkeys(QUESTION_TYPES, 24)
    assert len({row["image_file"] for row in rows}) == 120
    for row in rows:
        assert (row["question"], row["answer"]) in list(qa_pairs(VIEWS[row["image_file"]]))


def test_counts_of_zero_are_excluded_and_single_karts_are_not():
    rows = balanced_pairs(VIEWS, 120, seed=0)
    assert "0" not in {row["answer"] for row in rows}
    alone = sum(row["answer"] == "1" for row in rows if classify_question(row["question"]) == "total")
    assert 6 <= alone <= 21  # 60 % of the views; relation and count leave most of the others


def test_multiple_choice_has_the_official_mix_and_one_true_candidate():
    rows = multiple_choice(VIEWS, 200, seed=0)
    true_types = Counter(classify_caption(row["candidates"][row["correct_index"]]) for row in rows)
    assert true_types == {"total": 58, "track": 55, "ego": 45, "relation": 42}
    all_types = Counter(classify_caption(text) for row in rows for text in row["candidates"])
    assert all_types == {"track": 400, "ego": 330, "total": 188, "relation": 82}
    assert len({row["image_file"] for row in rows}) == 200
    for row in rows:
        true = set(captions(VIEWS[row["image_file"]]))
        assert len(set(row["candidates"])) == 5
        assert [index for index, text in enumerate(row["candidates"]) if text in true] == [row["correct_index"]]
    assert min(Counter(row["correct_index"] for row in rows).values()) > 20


def test_other_sizes_keep_the_proportions():
    types = Counter(classify_question(row["question"]) for row in balanced_pairs(VIEWS, 12, seed=0))
    assert sorted(types.values()) == [2, 2, 2, 3, 3]
    rows = multiple_choice(VIEWS, 100, seed=0)
    true_types = Counter(classify_caption(row["candidates"][row["correct_index"]]) for row in rows)
    assert true_types.total() == 100
    for name, exact in {"total": 29, "track": 27.5, "ego": 22.5, "relation": 21}.items():
        assert abs(true_types[name] - exact) < 1


@pytest.mark.parametrize("make", [balanced_pairs, multiple_choice])
def test_the_result_depends_on_the_seed_only(make):
    backwards = dict(reversed(VIEWS.items()))
    assert make(VIEWS, 50, 3) == make(backwards, 50, 3) != make(VIEWS, 50, 4)


@pytest.mark.parametrize("make", [balanced_pairs, multiple_choice])
def test_too_few_views_are_one_line(make):
    with pytest.raises(InputError, match=r"^valid: .* views left for .*; request fewer questions"):
        make(VIEWS, 5000, 0)


def test_build_writes_files_that_the_datasets_read(tiny_data: Path, call):
    for number, track in enumerate(TRACKS):
        write_frame(tiny_data / "valid", f"000b{number}", track)
    output = tiny_data / "valid_mine"
    arguments = ("--split", "valid", "--output", output, "--data", tiny_data, "--num_qa", 5, "--num_mc", 5)
    status, out, _ = call(COMMANDS, "build", *arguments)
    assert status == 0 and "balanced_qa_pairs.json: 5 questions" in out and "all_mc_qas.json: 5 questions" in out
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    assert set(first) == {"balanced_qa_pairs.json", "all_mc_qas.json"}
    assert len(VQADataset("valid_mine", tiny_data)) == 5 and len(MultiChoiceQADataset("valid_mine", tiny_data)) == 5
    call(COMMANDS, "build", *arguments)
    assert first == {path.name: path.read_bytes() for path in output.iterdir()}


def test_build_from_too_few_views_writes_nothing(tiny_data: Path, call):
    output = tiny_data / "valid_mine"
    arguments = ("--split", "valid", "--output", output, "--data", tiny_data, "--num_qa", 5)
    assert_one_line_error(call(COMMANDS, "build", *arguments), "valid")
    assert not output.exists()


def test_split_scenes_are_named_like_the_images(tiny_data: Path):
    assert set(split_scenes(tiny_data, "valid")) == {f"valid/000a{f}_0{v}_im.jpg" for f in range(2) for v in range(3)}


def test_a_split_without_views_and_a_negative_number_are_one_line(tiny_data: Path, call):
    for file in (tiny_data / "valid").glob("*_info.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"detections": []}))
    flags = ("--split", "valid", "--data", tiny_data, "--output", tiny_data / "mine")
    assert_one_line_error(call((build, verify), "build", *flags), "valid")
    status, _, err = call((build, verify), "build", *flags, "--num_qa", "-2")
    assert status == 2 and "--num-qa" in err
    assert not (tiny_data / "mine").exists()


def test_verify_counts_and_lists_disagreements(tiny_data: Path, call):
    status, out, _ = call(COMMANDS, "verify", "--data", tiny_data)
    assert status == 0
    assert out.splitlines()[:2] == ["5 of 5 answers", "6 of 6 true captions"]
    assert out.splitlines()[2:] == ["0 of 6 questions have more than one true candidate"]
    path = tiny_data / "valid_grader" / "balanced_qa_pairs.json"
    rows = json.loads(path.read_text())
    rows[0]["answer"] = "suzanne"
    path.write_text(json.dumps(rows))
    lines = call(COMMANDS, "verify", "--data", tiny_data)[1].splitlines()
    assert rows[0]["image_file"] in lines[0] and "suzanne" in lines[0]
    assert lines[1] == "4 of 5 answers"


def test_verify_of_a_question_on_a_missing_view(tiny_data: Path, call):
    path = tiny_data / "valid_grader" / "balanced_qa_pairs.json"
    for image, name in (("valid/000a0_09_im.jpg", "000a0_info.json"), ("valid/0dead_00_im.jpg", "0dead_info.json")):
        path.write_text(json.dumps([{"question": "What track is this?", "answer": "abyss", "image_file": image}]))
        assert_one_line_error(call(COMMANDS, "verify", "--data", tiny_data), name)


def test_verify_with_correct_index_out_of_range(tiny_data: Path, call):
    path = tiny_data / "valid_grader" / "all_mc_qas.json"
    rows = json.loads(path.read_text())
    rows[2]["correct_index"] = 5
    path.write_text(json.dumps(rows))
    assert_one_line_error(call(COMMANDS, "verify", "--data", tiny_data), rows[2]["image_file"])


@pytest.mark.skipif(
    not ((DATA_DIR / "valid_grader").is_dir() and (DATA_DIR / "valid").is_dir()) or (DATA_DIR / MARKER).exists(),
    reason="without the official data",  # after `make demo` in a clone the sample lies in its place
)
def test_the_label_rule_gives_the_official_answers(call):
    lines = call(COMMANDS, "verify")[1].splitlines()
    assert "120 of 120 answers" in lines and "199 of 200 true captions" in lines
    assert "12 of 200 questions have more than one true candidate" in lines
