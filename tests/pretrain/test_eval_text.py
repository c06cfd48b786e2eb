"""nano/asked: what a base answers in the words that it was taught."""

from pathlib import Path

from homework.labels.questions import QUESTION_TYPES, generate_questions
from pretrain import cli as train
from pretrain.eval_text import asked_as_taught, table
from pretrain.paraphrases import REWORDED
from tests.tiny_models import SCENE


class Knowing:
    """In a BaseVLM's place: says the truth about SCENE, but for what is changed."""

    def __init__(self, changes: dict[str, str]):
        self.answers = {question: answer for _, question, answer in generate_questions(SCENE, REWORDED)} | changes

    def answer(self, image_paths: list[str], questions: list[str]) -> list[str]:
        assert set(image_paths) == {"data/valid/00000_00_im.jpg"}
        return [self.answers[question] for question in questions]


def test_wrong_answers_are_counted_in_their_kind():
    """One wrong ego kart of three wordings; a count of 0 is not asked."""
    vlm = Knowing({"Name the ego car.": "gnu", "Count the karts behind the ego car.": "0"})
    right, asked = asked_as_taught(vlm, {"valid/00000_00_im.jpg": SCENE}, Path("data"))
    assert asked == {(3, "ego"): 3, (3, "total"): 3, (3, "track"): 3, (3, "relation"): 18, (3, "count"): 12}
    assert {kind: right[3, kind] for kind in QUESTION_TYPES} == {
        "ego": 2,
        "total": 3,
        "track": 3,
        "relation": 18,
        "count": 11,
    }
    rows = {
        line.split()[0]: dict(zip(QUESTION_TYPES, line.split()[1:], strict=True)) for line in table(right, asked)[1:]
    }
    assert rows["3"] == rows["all"] and rows["3"]["ego"] == "66.7" and rows["3"]["count"] == "91.7"


def test_the_command_asks_a_base(call, nano_folder, tiny_data):
    """Every kind has a share, on a tiny model."""
    status, out, err = call((train.answers, train.measure), "answers", "--base", nano_folder, "--data", tiny_data)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["karts", *QUESTION_TYPES] and lines[-1].startswith("all")
    assert all(0 <= float(share) <= 100 for share in lines[-1].split()[1:])


def test_a_tower_is_measured_on_views_as_they_are_and_as_worse_files(call, tiny_data):
    command = ("measure", "--data", tiny_data, "--split", "train")
    shares = []
    for quality in ((), ("--quality", "5")):
        status, out, err = call((train.answers, train.measure), *command, *quality)
        assert status == 0, err
        shares.append(dict(line.split() for line in out.splitlines()[:5]))
    assert set(shares[0]) == set(shares[1]) == set(QUESTION_TYPES) and shares[0] != shares[1]
    status, _, err = call((train.answers, train.measure), *command, "--quality", "0")
    assert status == 1 and "--quality: 0" in err
