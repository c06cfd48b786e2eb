"""Evaluation of a base on paraphrased questions, and of a vision encoder, by their commands."""

from pathlib import Path

from homework.labels.questions import QUESTION_TYPES, generate_questions
from pretrain import cli
from pretrain.eval_text import evaluate_paraphrased, format_accuracy_table
from pretrain.paraphrases import PARAPHRASED_QUESTIONS
from tests.tiny_models import SCENE

COMMANDS = (cli.eval_text, cli.eval_vision)


class OracleVLM:
    """Stand-in for a BaseVLM: answers correctly about SCENE, except for given changes."""

    def __init__(self, changes: dict[str, str]):
        self.answers = {
            question: answer for _, question, answer in generate_questions(SCENE, PARAPHRASED_QUESTIONS)
        } | changes

    def answer(self, image_paths: list[str], questions: list[str]) -> list[str]:
        assert set(image_paths) == {"data/valid/00000_00_im.jpg"}
        return [self.answers[question] for question in questions]


def test_wrong_answers_are_counted_by_question_type():
    """One of three paraphrases has a wrong ego kart; counts of 0 are left out."""
    vlm = OracleVLM({"Name the ego car.": "gnu", "Count the karts behind the ego car.": "0"})
    correct, total = evaluate_paraphrased(vlm, {"valid/00000_00_im.jpg": SCENE}, Path("data"))
    assert total == {(3, "ego"): 3, (3, "total"): 3, (3, "track"): 3, (3, "relation"): 18, (3, "count"): 12}
    assert {question_type: correct[3, question_type] for question_type in QUESTION_TYPES} == {
        "ego": 2,
        "total": 3,
        "track": 3,
        "relation": 18,
        "count": 11,
    }
    rows = {
        line.split()[0]: dict(zip(QUESTION_TYPES, line.split()[1:], strict=True))
        for line in format_accuracy_table(correct, total)[1:]
    }
    assert rows["3"] == rows["all"] and rows["3"]["ego"] == "66.7" and rows["3"]["count"] == "91.7"


def test_eval_text_prints_a_table(call, nano_folder, tiny_data):
    """Every question type has an accuracy, with a tiny model."""
    status, out, err = call(COMMANDS, "eval-text", "--base", nano_folder, "--data", tiny_data)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["karts", *QUESTION_TYPES] and lines[-1].startswith("all")
    assert all(0 <= float(cell) <= 100 for cell in lines[-1].split()[1:])


def test_eval_vision_prints_all_accuracies(call, tiny_data):
    status, out, err = call(COMMANDS, "eval-vision", "--data", tiny_data, "--split", "train")
    assert status == 0, err
    lines = out.splitlines()
    accuracies = dict(line.split() for line in lines[:5])
    assert set(accuracies) == set(QUESTION_TYPES) and all(0 <= float(value) <= 100 for value in accuracies.values())
    titles = [line for line in lines if line.endswith(":")]
    assert titles == [
        "karts named by the cells at their centres, by size:",
        "ego by difficulty:",
        "relation by number of karts:",
    ]
