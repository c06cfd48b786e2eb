"""Questions and captions have the wording of the contract, and are consistent in any scene."""

from hypothesis import given
from hypothesis import strategies as st

from homework.labels.questions import (
    QUESTION_TYPES,
    captions,
    classify_caption,
    classify_question,
    qa_pairs,
    sample_weight,
)
from homework.labels.scene import Kart, Scene

EGO = Kart(0, "tux", (65, 40, 85, 60))
FRONT_LEFT = Kart(1, "gnu", (10, 20, 30, 40))
BACK_RIGHT = Kart(2, "nolok", (100, 70, 120, 90))
SCENE = Scene("cocoa_temple", (FRONT_LEFT, EGO, BACK_RIGHT))
ALONE = Scene("abyss", (EGO,))
EMPTY = Scene("abyss", ())


def test_every_question_and_answer():
    assert list(qa_pairs(SCENE)) == [
        ("What kart is the ego car?", "tux"),
        ("How many karts are there in the scenario?", "3"),
        ("What track is this?", "cocoa_temple"),
        ("Is gnu to the left or right of the ego car?", "left"),
        ("Is nolok to the left or right of the ego car?", "right"),
        ("Is gnu in front of or behind the ego car?", "front"),
        ("Is nolok in front of or behind the ego car?", "back"),
        ("Where is gnu relative to the ego car?", "front and left"),
        ("Where is nolok relative to the ego car?", "back and right"),
        ("How many karts are to the left of the ego car?", "1"),
        ("How many karts are to the right of the ego car?", "1"),
        ("How many karts are in front of the ego car?", "1"),
        ("How many karts are behind the ego car?", "1"),
    ]


def test_every_caption():
    assert list(captions(SCENE)) == [
        "tux is the ego car.",
        "There are 3 karts in the scene.",
        "The track is cocoa_temple.",
        "gnu is in front of the ego car.",
        "nolok is behind the ego car.",
        "gnu is left of the ego car.",
        "nolok is right of the ego car.",
    ]


def test_a_single_kart_is_counted_in_the_total_only():
    pairs = dict(qa_pairs(ALONE))
    assert pairs["How many karts are there in the scenario?"] == "1"
    assert [answer for question, answer in pairs.items() if classify_question(question) == "count"] == ["0"] * 4
    assert "There are 1 karts in the scene." in set(captions(ALONE))


def test_without_a_kart_only_the_track_is_asked():
    assert list(qa_pairs(EMPTY)) == [("What track is this?", "abyss")]
    assert list(captions(EMPTY)) == ["The track is abyss."]


def test_types_of_questions_and_captions():
    types = [classify_question(question) for question, _ in qa_pairs(SCENE)]
    assert types == ["ego", "total", "track", *["relation"] * 6, *["count"] * 4]
    assert set(types) == set(QUESTION_TYPES)
    assert [classify_caption(text) for text in captions(SCENE)] == ["ego", "total", "track", *["relation"] * 4]
    assert classify_question("Is it raining?") == classify_caption("It rains.") == "other"


sides = st.integers(5, 30)
karts = st.builds(
    lambda x, y, width, height: (x, y, x + width, y + height), st.integers(0, 120), st.integers(0, 70), sides, sides
)
scenes = st.lists(karts, min_size=1, max_size=10).map(
    lambda boxes: Scene("abyss", tuple(Kart(i, f"kart_{i}", box) for i, box in enumerate(boxes)))
)


@given(scenes)
def test_the_counts_of_any_scene_add_up(scene: Scene):
    answers = dict(qa_pairs(scene))
    left, right, front, behind = (
        int(answers[f"How many karts are {place} the ego car?"])
        for place in ("to the left of", "to the right of", "in front of", "behind")
    )
    total = int(answers["How many karts are there in the scenario?"])
    assert left + right == front + behind == total - 1


@given(scenes)
def test_where_questions_agree_with_the_other_relations_and_captions(scene: Scene):
    answers, true = dict(qa_pairs(scene)), set(captions(scene))
    for kart in scene.others:
        side = answers[f"Is {kart.name} to the left or right of the ego car?"]
        longitudinal = answers[f"Is {kart.name} in front of or behind the ego car?"]
        assert answers[f"Where is {kart.name} relative to the ego car?"] == f"{longitudinal} and {side}"
        place = {"front": "in front of", "back": "behind"}[longitudinal]
        assert {f"{kart.name} is {side} of the ego car.", f"{kart.name} is {place} the ego car."} <= true


@given(scenes)
def test_questions_and_captions_of_a_scene_are_unique_and_classified(scene: Scene):
    questions, texts = [question for question, _ in qa_pairs(scene)], list(captions(scene))
    assert len(questions) == len(set(questions)) and len(texts) == len(set(texts))
    assert "other" not in {*map(classify_question, questions), *map(classify_caption, texts)}


def test_counts_of_zero_have_a_lower_weight():
    """They are most of all counts, and the official evaluation excludes them; all other pairs weigh the same."""
    assert sample_weight("count", "0") < sample_weight("count", "1")
    assert sample_weight("count", "1") == sample_weight("ego", "tux") == sample_weight("total", "10")
