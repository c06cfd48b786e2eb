"""Test viewer.error_analysis: accuracy tables, confusions and consistency."""

import json
import re
from collections import Counter

import pytest

from homework.labels.eval_sets import split_scenes
from homework.labels.questions import classify_question, qa_pairs
from homework.labels.scene import Kart, Scene
from viewer.error_analysis import (
    AnsweredQuestion,
    analyze,
    answer_all_questions,
    consistency,
    format_table,
    group_by_image,
    group_by_kart_size,
    group_by_num_karts,
    group_by_training_pair,
)

SCENE = Scene(
    "abyss",
    (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 17, 48)), Kart(2, "xue", (100, 60, 137, 91))),
)


def answer_view(changes: dict[str, str], scene: Scene = SCENE, image: str = "a") -> list[AnsweredQuestion]:
    """Answer all questions about a view correctly except for the changes."""
    return [AnsweredQuestion(image, scene, q, truth, changes.get(q, truth)) for q, truth in qa_pairs(scene)]


def test_correct_answers_are_consistent():
    """Each view is counted once, and each where-question once."""
    found = consistency(answer_view({}) + answer_view({}, image="b"))
    assert found == {
        "left + right = total - 1": (2, 2),
        "front + behind = total - 1": (2, 2),
        "where = its two parts": (4, 4),
        "all of a view": (2, 2),
    }


@pytest.mark.parametrize(
    "question, answer, check",
    [
        ("How many karts are to the left of the ego car?", "2", "left + right = total - 1"),
        ("How many karts are behind the ego car?", "none", "front + behind = total - 1"),
        ("Where is gnu relative to the ego car?", "back and left", "where = its two parts"),
        ("Is xue to the left or right of the ego car?", "left", "where = its two parts"),
    ],
)
def test_one_wrong_answer_breaks_its_check(question, answer, check):
    """A single wrong answer fails its own check and the view's, and no other."""
    found = consistency(answer_view({question: answer}))
    for name, (passed, total) in consistency(answer_view({})).items():
        assert found[name] == (passed - (name in (check, "all of a view")), total)


def test_wrong_answers_can_be_consistent():
    """Consistency does not depend on the truth: one kart less in all numbers still adds up."""
    changes = {
        "How many karts are there in the scenario?": "2",
        "How many karts are to the left of the ego car?": "0",
        "How many karts are in front of the ego car?": "0",
    }
    assert consistency(answer_view(changes))["all of a view"] == (1, 1)


def test_view_without_karts_has_no_checks():
    """The only question is about the track."""
    assert consistency(answer_view({}, Scene("abyss", ()))) == {}


def test_tables_group_by_difficulty():
    """Groups are the karts in the view, the deciding kart's size, and the pairs of kart and track in train."""
    rows = answer_view({"Is gnu to the left or right of the ego car?": "right"})
    sizes = {(row.question, group_by_kart_size(row)) for row in rows}
    assert ("What kart is the ego car?", "25 or more") in sizes and ("What track is this?", None) in sizes
    assert ("Is gnu to the left or right of the ego car?", " 7 to 9") in sizes  # 7 pixels wide
    assert ("How many karts are behind the ego car?", " 7 to 9") in sizes  # the smallest of the view
    assert {group_by_num_karts(row) for row in rows} == {"3"}
    assert {group_by_training_pair(Counter({("tux", "abyss"): 1}))(row) for row in rows} == {"in train"}
    assert {group_by_training_pair(Counter())(row) for row in rows} == {"not in train"}
    lines = format_table("pixels", rows, group_by_kart_size)
    relation = [line.split() for line in lines if line.startswith("   7 to 9")]
    assert relation[0][3:] == ["-", "100.0", "of", "1", "66.7", "of", "3", "100.0", "of", "4"]


def test_all_questions_are_answered(vlm, tiny_data):
    """Each view gets an answer to every question that its labels answer, counts of 0 included."""
    scenes = split_scenes(tiny_data, "valid")
    views = group_by_image(answer_all_questions(vlm, scenes, tiny_data))
    assert {image: [row.question for row in view] for image, view in views.items()} == {
        image: [question for question, _ in qa_pairs(scene)] for image, scene in scenes.items()
    }


def test_command_prints_tables_and_consistency(call, nano_folder, tiny_data, tmp_path):
    """The command runs on a tiny model and writes every answer."""
    status, out, err = call((analyze,), "analyze", nano_folder, "--data", tiny_data, "--output", tmp_path / "a.json")
    assert status == 0, err
    for words in ("karts in the view", "kart size in pixels", "not in train", "all of a view"):
        assert words in out
    samples = json.loads((tmp_path / "a.json").read_text())["samples"]
    official = [row for row in samples if row["correct_answer"] != "0"]
    wrong = Counter(
        (row["correct_answer"], row["model_answer"])
        for row in official
        if row["model_answer"].strip().lower() != row["correct_answer"].lower()
    )
    first = out.split("most frequent mistakes: type, truth, answer, number\n")[1].splitlines()[0].split()
    assert (int(first[-1]), first[1] in {truth for truth, _ in wrong}) == (wrong.most_common(1)[0][1], True)
    counts = [row["correct_answer"] for row in samples if classify_question(row["question"]) == "count"]
    for name, number in (("0", counts.count("0")), ("others", len(counts) - counts.count("0"))):
        assert re.search(rf"^  {name} +[\d.]+ of {number}$", out.split("counts, 0 included")[1], re.M)
