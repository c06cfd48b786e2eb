"""Test viewer.answers: the answers to a split, their scores, and whether they agree."""

import pytest

from homework.labels.eval_sets import split_scenes
from homework.labels.questions import qa_pairs
from homework.labels.scene import Kart, Scene
from viewer.answers import AnsweredQuestion, answer_all_questions, consistency, group_by_image, score_guesses

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


def test_all_questions_are_answered(vlm, tiny_data):
    """Each view gets an answer to every question that its labels answer, counts of 0 included."""
    scenes = split_scenes(tiny_data, "valid")
    views = group_by_image(answer_all_questions(vlm, scenes, tiny_data))
    assert {image: [row.question for row in view] for image, view in views.items()} == {
        image: [question for question, _ in qa_pairs(scene)] for image, scene in scenes.items()
    }


def test_guessing_baselines_know_each_questions_answers():
    """The most frequent answer is the best constant one per question; chance is one over the number of answers."""
    two, three = SCENE, Scene("minigolf", SCENE.karts[:2])
    answers = answer_view({}, two) + answer_view({}, two, "b") + answer_view({}, three, "c")
    found = score_guesses(answers)
    assert found["most frequent answer"]["track"] == pytest.approx(2 / 3) and found["chance"]["track"] == 0.5
    assert found["most frequent answer"]["ego"] == found["chance"]["ego"] == 1.0
    # gnu is left in 3 views, xue right in 2: the question is the same for both karts
    halves = [row for row in answers if row.template == "Is {kart} to the left or right of the ego car?"]
    assert score_guesses(halves)["most frequent answer"]["relation"] == 0.6
