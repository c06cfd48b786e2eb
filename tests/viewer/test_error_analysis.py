"""benchmarks/answers: where a model fails, and whether its answers agree."""

import json
import re
from collections import Counter

import pytest

from homework.labels.eval_sets import split_scenes
from homework.labels.questions import classify_question, qa_pairs
from homework.labels.scene import Kart, Scene
from viewer.error_analysis import (
    Asked,
    agreement,
    ask_everything,
    by_number,
    by_pair,
    by_side,
    confusions,
    report,
    table,
)

SCENE = Scene(
    "abyss",
    (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 17, 48)), Kart(2, "xue", (100, 60, 137, 91))),
)


def answered(changes: dict[str, str], scene: Scene = SCENE) -> list[Asked]:
    """All questions of a view, answered rightly but for the changes."""
    return [Asked(scene, q, truth, changes.get(q, truth)) for q, truth in qa_pairs(scene)]


def test_right_answers_agree():
    """Truth is consistent; each view is counted once, each where-question once."""
    found = agreement([answered({}), answered({})])
    assert found == {
        "left + right = total - 1": (2, 2),
        "front + behind = total - 1": (2, 2),
        "where = its two halves": (4, 4),
        "all of a view": (2, 2),
    }


@pytest.mark.parametrize(
    "question, answer, check",
    [
        ("How many karts are to the left of the ego car?", "2", "left + right = total - 1"),
        ("How many karts are behind the ego car?", "none", "front + behind = total - 1"),
        ("Where is gnu relative to the ego car?", "back and left", "where = its two halves"),
        ("Is xue to the left or right of the ego car?", "left", "where = its two halves"),
    ],
)
def test_one_wrong_answer_breaks_its_check(question, answer, check):
    """A single wrong answer is seen in its own check and in the view's, and in no other."""
    found = agreement([answered({question: answer})])
    whole = agreement([answered({})])
    for name, (held, number) in whole.items():
        assert found[name] == (held - (name in (check, "all of a view")), number)


def test_answers_that_are_wrong_together_agree():
    """Agreement says nothing of the truth: one kart less in all numbers still adds up."""
    changes = {
        "How many karts are there in the scenario?": "2",
        "How many karts are to the left of the ego car?": "0",
        "How many karts are in front of the ego car?": "0",
    }
    assert agreement([answered(changes)])["all of a view"] == (1, 1)


def test_view_without_karts_has_nothing_to_agree_on():
    """Only the track is asked: no check."""
    assert agreement([answered({}, Scene("abyss", ()))]) == {}


def test_tables_group_by_what_makes_a_question_hard():
    """Karts in the view, the asked kart's size, and pairs of kart and track that train has."""
    rows = answered({"Is gnu to the left or right of the ego car?": "right"})
    where = {(one.question, by_side(one)) for one in rows}
    assert ("What kart is the ego car?", "25 or more") in where and ("What track is this?", None) in where
    assert ("Is gnu to the left or right of the ego car?", " 7 to 9") in where  # 7 pixels wide
    assert ("How many karts are behind the ego car?", " 7 to 9") in where  # the smallest of the view
    assert {by_number(one) for one in rows} == {"3"}
    assert {by_pair(Counter({("tux", "abyss"): 1}))(one) for one in rows} == {"in train"}
    assert {by_pair(Counter())(one) for one in rows} == {"not in train"}
    lines = table("pixels", rows, by_side)
    relation = [line.split() for line in lines if line.startswith("   7 to 9")]
    assert relation[0][3:] == ["-", "100.0", "of", "1", "66.7", "of", "3", "100.0", "of", "4"]


def test_confusions_name_what_is_said_instead():
    """The worst first, with the wrong answers and how often they were given."""
    rows = [*answered({"What kart is the ego car?": "gnu"}), *answered({"What kart is the ego car?": "kiki"})]
    other = Scene("abyss", (Kart(0, "xue", (60, 40, 90, 71)),))
    lines = confusions(rows + answered({}, other), "ego")
    assert lines[1].split() == ["tux", "0.0", "of", "2", "gnu", "1,", "kiki", "1"]
    assert lines[2].split() == ["xue", "100.0", "of", "1"]


def test_everything_is_asked(vlm, tiny_data):
    """Each view has an answer to every question that can be asked of it, counts of 0 too."""
    scenes = split_scenes(tiny_data, "valid")
    views = ask_everything(vlm, scenes, tiny_data)
    assert {image: [one.question for one in view] for image, view in views.items()} == {
        image: [question for question, _ in qa_pairs(scene)] for image, scene in scenes.items()
    }


def test_report_prints_tables_and_agreement(call, nano_folder, tiny_data, tmp_path):
    """The command itself, on a tiny model."""
    status, out, err = call((report,), "report", nano_folder, "--data", tiny_data, "--output", tmp_path / "a.json")
    assert status == 0, err
    for words in ("karts in the view", "pixels of the kart", "not in train", "all of a view"):
        assert words in out
    samples = json.loads((tmp_path / "a.json").read_text())["samples"]
    counts = [row["correct_answer"] for row in samples if classify_question(row["question"]) == "count"]
    for name, number in (("0", counts.count("0")), ("others", len(counts) - counts.count("0"))):
        assert re.search(rf"^  {name} +[\d.]+ of {number}$", out.split("counts, 0 too")[1], re.M)
