"""Datasets read annotation files and report broken ones; the benchmark scores as the course does."""

import json
import logging
from pathlib import Path

import pytest

from homework.data import (
    ALL,
    benchmark,
    benchmark_paraphrased,
    estimate_by_moment,
    is_correct,
    is_exact_match,
    print_accuracies,
    subsample_evenly,
    wilson_interval,
)
from homework.labels.duplicates import Estimate
from homework.labels.rows import (
    CaptionDataset,
    MultiChoiceQADataset,
    VQADataset,
    check_not_eval_split,
    drop_rows_without_image,
    info_files,
)
from homework.utils.errors import InputError
from homework.utils.images import open_image
from homework.utils.io import write_json
from tests.tiny_models import stand_still

ROW = {"question": "What track is this?", "answer": "abyss", "image_file": "train/00000_00_im.jpg"}


def test_every_annotation_file_of_a_split_is_read(tiny_data: Path):
    before = len(VQADataset("train", tiny_data))
    write_json(tiny_data / "train" / "more_qa_pairs.json", [ROW])
    dataset = VQADataset("train", tiny_data)
    assert len(dataset) == before + 1
    assert dataset[len(dataset) - 1] == ROW | {"image_path": str(tiny_data / ROW["image_file"])}


def test_the_three_datasets(tiny_data: Path):
    # the views of a frame hold two karts, one, and three
    assert len(VQADataset("valid", tiny_data)) == 2 * (10 + 7 + 13)
    assert len(CaptionDataset("valid", tiny_data)) == 2 * (5 + 3 + 7)
    assert len(VQADataset("valid_grader", tiny_data)) == len(VQADataset("train_demo", tiny_data)) == 5
    questions = MultiChoiceQADataset("valid_grader", tiny_data)
    assert len(questions) == 6
    for row in questions:
        assert len(set(row["candidates"])) == 5 and Path(row["image_path"]).exists()


def test_missing_splits_and_annotations_name_the_remedy(tiny_data: Path):
    with pytest.raises(
        InputError, match="nowhere: no such split; choose one of train, train_demo, valid, valid_grader"
    ):
        VQADataset("nowhere", tiny_data)
    (tiny_data / "train" / "generated_captions.json").unlink()
    with pytest.raises(InputError) as error:
        CaptionDataset("train", tiny_data)
    remedy = f"run `python -m homework.generate_captions generate --split train --data {tiny_data}`"
    assert str(error.value).endswith(f"; {remedy}")


@pytest.mark.parametrize(("dataset", "name"), [(VQADataset, "generate_qa"), (CaptionDataset, "generate_captions")])
def test_the_default_data_folder_is_not_in_the_remedy(tiny_data: Path, monkeypatch, dataset, name: str):
    """The command of the remedy writes where the files were missing."""
    monkeypatch.chdir(tiny_data.parent)
    (tiny_data / "empty").mkdir()
    for data_dir in ("data", tiny_data):
        with pytest.raises(InputError) as error:
            dataset("empty", data_dir)
        assert str(error.value).endswith(f"; run `python -m homework.{name} generate --split empty`")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({}, "expected a list of rows, got an object"),
        (None, "expected a list of rows, got null"),
        ([1], "row 0: expected an object, got an integer"),
        ([ROW, {}], "row 1: no `image_file`"),
        ([ROW | {"answer": 3}], "row 0: `answer`: expected a string, got an integer"),
        ([ROW | {"question": [True]}], "row 0: `question`: expected a string, got a list"),
    ],
)
def test_a_wrong_type_is_one_line_that_says_so(tiny_data: Path, content, problem: str):
    path = tiny_data / "train" / "broken_qa_pairs.json"
    write_json(path, content)
    with pytest.raises(InputError) as error:
        VQADataset("train", tiny_data)
    assert str(error.value) == f"{path}: {problem}; generate or restore the file"


def test_a_broken_annotation_file_is_one_line_that_names_it(tiny_data: Path):
    path = tiny_data / "train" / "broken_qa_pairs.json"
    path.write_text("[")
    with pytest.raises(InputError, match=f"^{path}: not readable as JSON [^\\n]*$"):
        VQADataset("train", tiny_data)


@pytest.mark.parametrize(
    ("dataset", "name"), [(VQADataset, "generate_qa"), (CaptionDataset, "generate_captions")], ids=["qa", "captions"]
)
def test_a_file_may_hold_no_rows_but_a_split_must_hold_some(tiny_data: Path, dataset, name: str):
    """Generators that write a file per view write `[]` for a view without a question."""
    before, pattern = dataset("train", tiny_data).rows, dataset.pattern
    write_json(tiny_data / "train" / pattern.replace("*", "00000_03"), [])
    assert dataset("train", tiny_data).rows == before
    for file in (tiny_data / "train").glob(pattern):
        write_json(file, [])
    with pytest.raises(InputError) as error:
        dataset("train", tiny_data)
    remedy = f"run `python -m homework.{name} generate --split train --data {tiny_data}`"
    assert str(error.value) == f"{tiny_data / 'train'}: the {pattern} in it hold no rows; {remedy}"


@pytest.mark.parametrize("index", [-1, 5])
def test_correct_index_out_of_range(tiny_data: Path, index: int):
    path = tiny_data / "valid_grader" / "all_mc_qas.json"
    rows = json.loads(path.read_text())
    rows[1]["correct_index"] = index
    write_json(path, rows)
    with pytest.raises(InputError) as error:
        MultiChoiceQADataset("valid_grader", tiny_data)
    assert "valid_grader" in str(error.value) and rows[1]["image_file"] in str(error.value)


def test_a_truncated_image_is_one_line_that_names_it(tiny_data: Path):
    path = tiny_data / "train" / "00000_00_im.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputError) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: not a readable image") and "\n" not in str(error.value)


def test_prefix_and_exact_match():
    assert is_correct(" Tux is it", "tux") and is_correct("10", "1")
    assert not is_correct("the tux", "tux") and not is_correct("", "tux")
    assert is_exact_match(" Tux\n", "tux") and not is_exact_match("10", "1")


class AlwaysOne:
    """A model that starts every answer with 1."""

    def answer(self, image_paths: list[str], questions: list[str]) -> list[str]:
        assert len(image_paths) == len(questions) and all(Path(path).exists() for path in image_paths)
        return ["1 kart"] * len(questions)


def test_benchmark_has_micro_macro_per_type_and_exact_accuracy(tiny_data: Path):
    result = benchmark(AlwaysOne(), VQADataset("valid", tiny_data))
    assert result.num_by_type == {"ego": 6, "total": 6, "track": 6, "relation": 18, "count": 24}
    assert result.accuracy_by_type == {"ego": 0, "total": 1 / 3, "track": 0, "relation": 0, "count": 12 / 24}
    assert result.accuracy == (2 + 12) / 60 == sum(sample.is_correct for sample in result.samples) / 60
    assert result.macro_accuracy == pytest.approx((1 / 3 + 12 / 24) / 5)
    assert result.exact_accuracy == 0
    assert json.loads(json.dumps(result.to_json()))["num_by_type"] == result.num_by_type


def test_fewer_samples_are_evenly_spaced(tiny_data: Path):
    assert subsample_evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert subsample_evenly(range(3), 128) == subsample_evenly(range(3), None) == [0, 1, 2]
    assert len(benchmark(AlwaysOne(), VQADataset("valid", tiny_data), 7).samples) == 7


def test_evaluation_splits_are_not_trained_on():
    for split in ("valid", "valid_grader", "valid_mine"):
        with pytest.raises(InputError, match=f"^{split}: "):
            check_not_eval_split(split)
    for split in ("train", "train_demo", "my_valid"):
        check_not_eval_split(split)


def test_rows_without_an_image_are_dropped(tiny_data, caplog):
    """Rows without an image are dropped and counted; if no image exists, it is an error."""
    caplog.set_level(logging.INFO, "homework")
    rows = VQADataset("train", tiny_data)
    gone = rows[0]["image_path"]
    kept = [row for row in rows if row["image_path"] != gone]
    Path(gone).unlink()
    assert drop_rows_without_image(rows) == kept and kept
    assert f"dropped {len(rows) - len(kept)} of {len(rows)} rows without an image" in caplog.text
    for row in kept:
        Path(row["image_path"]).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no such image"):
        drop_rows_without_image(rows)


@pytest.mark.parametrize(
    "right, number, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0)],
)
def test_wilson_interval(right: int, number: int, low: float, high: float):
    """Compare with Newcombe's worked examples of the score method (Statistics in Medicine 17, 1998, table I)."""
    assert wilson_interval(right / number, number) == pytest.approx((low, high), abs=1e-4)


def test_no_number_is_a_negative_zero(capsys):
    """Rounding leaves some numbers just below 0."""
    print_accuracies("title", ("correct",), [("name", (-1e-9,), 1, Estimate(-1e-9, -1e-9, -1e-9))])
    assert capsys.readouterr().out.splitlines()[2].split() == ["name", "0.0", "1", "0.0", "0.0-0.0"]


def test_hidden_files_are_ignored(tiny_data: Path):
    """macOS leaves `._NAME` beside a file on foreign disks and in zips."""
    before = VQADataset("train", tiny_data).rows, info_files(tiny_data / "train")
    for name in ("._more_qa_pairs.json", "._00000_info.json", ".DS_Store"):
        (tiny_data / "train" / name).write_bytes(b"\0\5\26\7")
    assert (VQADataset("train", tiny_data).rows, info_files(tiny_data / "train")) == before


def test_each_moment_counts_once(tiny_data: Path):
    """Copies of a frame that repeat its wrong answer change nothing; an image without a frame counts by itself."""
    stand_still(tiny_data / "train", 4)
    images = [f"{tiny_data}/train/{name}_00_im.jpg" for name in ("00000", "000b1", "000b2", "00001")] + ["mine.jpg"]
    result = estimate_by_moment(images, ["?"] * 5, [*["ego"] * 4, "track"], [False, False, False, True, True])
    assert (result["ego"].value, result["track"].value) == (0.5, 1)
    assert result[ALL].value == pytest.approx(2 / 3)


class Parrot:
    """A model that knows the answers to the course's words, and to others whatever they are mapped to."""

    def __init__(self, rows: list[dict], other: str | None):
        self.truths, self.other = {(row["image_path"], row["question"]): row["answer"] for row in rows}, other

    def answer(self, images: list[str], questions: list[str]) -> list[str]:
        """Answer a question about an image; in other words by the first question's answer, or by `other`."""
        given, last = [], ""
        for asked in zip(images, questions, strict=True):
            last = self.truths.get(asked, last)
            given.append(last if asked in self.truths or self.other is None else self.other)
        return given


@pytest.mark.parametrize(("other", "expected"), [(None, (1, 1, 1)), ("back3", (0, 0, 0)), ("tux", (0, 0, 0.2))])
def test_questions_in_other_words(tiny_data: Path, other, expected):
    """Right, equal to the answer in the course's words, possible at all: the mean over the five types."""
    rows = VQADataset("valid_grader", tiny_data).rows
    result = benchmark_paraphrased(Parrot(rows, other), rows)
    assert result.course.accuracy == 1 and len(result.wordings) == 10 * len(rows)
    found = [sum(by_type.values()) / 5 for by_type in (result.words, result.agreement, result.possible)]
    assert found == pytest.approx(expected)
