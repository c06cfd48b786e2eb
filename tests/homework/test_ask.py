"""Test `finetune ask`, the checkpoints of the other model, and the base's score in `test`."""

import io
import json

import pytest

from homework import clip, finetune
from homework.base_vlm import BaseVLM
from homework.labels.questions import SHORT_LIST
from homework.training.likelihood import compute_probabilities
from homework.utils.errors import make_printable
from tests.conftest import assert_one_line_error
from tests.homework.test_finetune import train

COMMANDS = (finetune.train, finetune.test, finetune.ask)


@pytest.fixture
def images(tiny_data):
    return sorted(map(str, (tiny_data / "valid").glob("*.jpg")))


def test_five_questions_about_each_picture(nano_folder, images, call):
    """Ego kart, number, track, and two counts, each with the model's answer and its probability in percent."""
    status, out, err = call(COMMANDS, "ask", *images[:2], "--checkpoint", nano_folder)
    lines = out.splitlines()
    assert status == 0 and lines[0] == images[0] and lines[6] == images[1] and len(lines) == 12, err
    vlm, answers = BaseVLM(nano_folder), []
    for line, question in zip(lines[1:6], SHORT_LIST, strict=True):
        answers.append(vlm.answer([images[0]], [question])[0])
        assert line.startswith(f"  {question} ") and make_printable(answers[-1]) in line and line.endswith(" %")
    probability = compute_probabilities(vlm, {images[0]: [(SHORT_LIST[0], answers[0])]})[images[0]]
    assert lines[1].endswith(f" {100 * probability[SHORT_LIST[0], answers[0]]:.1f} %")
    assert len(SHORT_LIST) == 5


def test_programs_read_and_write_lines(nano_folder, images, call, monkeypatch):
    """Names come from standard input, in batches; a JSON object per answer goes to standard output."""
    names = images * 4  # more than a batch
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{name}\n" for name in names)))
    flags = ["--question", "What track is this?", "--checkpoint", nano_folder, "--jsonl"]
    status, out, _ = call(COMMANDS, "ask", "-", *flags)
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and {row["image"] for row in rows} == set(images)
    assert all(row["question"] == flags[1] and 0 <= row["probability"] <= 1 for row in rows)
    assert [row["image"] for row in rows] == names


@pytest.mark.parametrize(
    ("flags", "is_known"),
    [
        (["--question", "Where is gnu relative to the ego car?"], True),
        (["--question", "Which track is shown?"], True),  # one of the other wordings
        (["--question", "What is the weather?"], False),
        (["--question", "What is the weather?", "--jsonl"], False),
        ([], True),
    ],
)
def test_ask_says_that_a_question_is_not_the_courses(nano_folder, images, call, flags, is_known):
    """On standard error, so that programs read answers only."""
    status, out, err = call(COMMANDS, "ask", images[0], "--checkpoint", nano_folder, *flags)
    note = "note: not one of the course's questions: the answer may mean nothing\n"
    assert status == 0 and err.count(note) == (not is_known) and "note:" not in out


def test_a_missing_picture_is_noticed_first(images, call):
    result = call(COMMANDS, "ask", images[0], images[1].replace("_01_", "_91_"), "--checkpoint", "nothing")
    assert_one_line_error(result, "no such image; did you mean 000a")


def test_a_checkpoint_of_the_other_model_is_named_as_that(nano_folder, tiny_data, tmp_path, call):
    folder = train(nano_folder, tiny_data, tmp_path, steps=1, progress_questions=0)
    clip.train(str(nano_folder), data=str(tiny_data), output=str(tmp_path / "clip"), steps=1, progress_questions=0)
    result = call(COMMANDS, "test", tmp_path / "clip", "--data", tiny_data)
    assert_one_line_error(result, "a CLIP's checkpoint, expected one of a VLM; ")
    assert f"python -m homework.clip test {tmp_path / 'clip'}" in result[2]
    result = call((clip.train, clip.test), "test", folder, "--data", tiny_data)
    assert_one_line_error(result, "a VLM's checkpoint (no additional_weights.pt), expected one of a CLIP; ")
    assert f"python -m homework.finetune test {folder}" in result[2]


@pytest.mark.parametrize(("module", "part"), [(finetune, "vlm"), (clip, "clip")])
def test_test_names_the_base_and_the_next_command(nano_folder, with_progress, tmp_path, call, module, part):
    """The base's score is that of training's first evaluation; an old `training.json` may have none."""
    output = tmp_path / part
    module.train(str(nano_folder), data=str(with_progress), output=str(output), steps=1, progress_questions=5)
    manifest = json.loads((output / "training.json").read_text())
    assert part == "clip" or "eval_accuracy" in manifest["curve"][0] and manifest["curve"][0]["step"] == 0
    for expected in (True, False):
        manifest["curve"] = [{"step": 0 if expected else 40, "eval_accuracy": 12.5}]
        (output / "training.json").write_text(json.dumps(manifest))
        _, out, err = call((module.train, module.test), "test", output, "--data", with_progress)
        assert ("its base, before training: 12.5" in out) == expected, err
        assert f"`python3 bundle.py homework ID --{part} {output}` packs it" in out.splitlines()[-1]
    _, out, _ = call((finetune.train, finetune.test), "test", nano_folder, "--data", with_progress)
    assert out.splitlines()[-1].endswith("`python -m homework.finetune train` trains an adapter")
