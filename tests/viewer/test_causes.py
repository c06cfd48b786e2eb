"""Test viewer.causes: each condition on a scene built for it, on both sides of its threshold."""

import pytest

from homework.labels.questions import qa_pairs
from homework.labels.scene import Kart, Scene
from tests.conftest import write_frame
from viewer.answers import AnsweredQuestion
from viewer.causes import (
    FAR_PX,
    find_borderline_views,
    find_causes,
    find_contradictory,
    find_look_alikes,
    is_ego_far,
    is_label_doubtful,
    is_large_number,
    is_other_kart_far,
    is_overlapped,
)

EGO, TOTAL, TRACK = "What kart is the ego car?", "How many karts are there in the scenario?", "What track is this?"
LEFT, FRONT = "Is gnu to the left or right of the ego car?", "Is gnu in front of or behind the ego car?"
NUM_LEFT = "How many karts are to the left of the ego car?"


def make_scene(*boxes) -> Scene:
    return Scene("abyss", tuple(map(Kart, range(9), ("tux", "gnu", "xue", "kiki", "nolok"), boxes)))


def make_answer(scene: Scene, question: str, answer: str | None = None, image: str = "a") -> AnsweredQuestion:
    truth = dict(qa_pairs(scene))[question]
    return AnsweredQuestion(image, scene, question, truth, truth if answer is None else answer)


@pytest.mark.parametrize("side, is_far", [(FAR_PX - 1, True), (FAR_PX, False)])
def test_a_kart_below_the_threshold_is_far(side, is_far):
    """The ego kart concerns all questions but the track's, another one those that it decides."""
    far_ego = make_scene((70, 45, 70 + side, 65), (0, 0, 40, 40))
    assert [is_ego_far(make_answer(far_ego, q)) for q in (EGO, TOTAL, LEFT, TRACK)] == [is_far] * 3 + [False]
    far_other = make_scene((60, 40, 90, 70), (0, 0, 40, side))
    assert [is_other_kart_far(make_answer(far_other, q)) for q in (TOTAL, LEFT, EGO)] == [is_far] * 2 + [False]


@pytest.mark.parametrize("x, overlaps", [(73, True), (82, False)])
def test_boxes_overlap_from_a_share_of_the_smaller_one(x, overlaps):
    """Of 30 columns, 17 or 8 are shared. A kart's question concerns its own overlaps, a number all of them."""
    scene = make_scene((60, 40, 90, 70), (0, 0, 20, 20), (x, 40, x + 30, 70))
    assert is_overlapped(make_answer(scene, EGO)) == is_overlapped(make_answer(scene, TOTAL)) == overlaps
    assert not is_overlapped(make_answer(scene, LEFT)) and not is_overlapped(make_answer(scene, TRACK))


def test_numbers_beyond_three_are_large():
    """Of four karts, three are counted on one side."""
    scene = make_scene((60, 40, 90, 70), *[(10 * n, 0, 10 * n + 9, 9) for n in range(3)])
    assert is_large_number(make_answer(scene, TOTAL)) and not is_large_number(make_answer(scene, NUM_LEFT))


@pytest.mark.parametrize(
    "box, questions",
    [
        ((61, 0, 91, 20), {LEFT, NUM_LEFT}),  # the centre is one pixel to the right of the ego kart's
        ((0, 41, 30, 71), {FRONT}),
        ((0, 0, 20, 20), set()),
        ((61, 40, 91, 70), {EGO, LEFT, NUM_LEFT, FRONT}),
    ],
)
def test_a_label_is_doubtful_if_a_pixel_decides(box, questions):
    scene = make_scene((60, 40, 90, 70), box)
    asked = (EGO, LEFT, NUM_LEFT, FRONT, TOTAL, TRACK)
    assert {question for question in asked if is_label_doubtful(make_answer(scene, question), False)} == questions
    borderline = {question for question in asked if is_label_doubtful(make_answer(scene, question), True)}
    assert borderline == questions | {NUM_LEFT, TOTAL}


@pytest.mark.parametrize("side, is_borderline", [(3, False), (4, True), (5, True), (6, False)])
def test_a_view_is_borderline_if_a_kart_hardly_counts_or_hardly_does_not(tmp_path, side, is_borderline):
    write_frame(tmp_path / "valid", "00000", "abyss", views=[((60, 40, 90, 70), (0, 0, side, 20))])
    image = "valid/00000_00_im.jpg"
    assert find_borderline_views([image], tmp_path) == ({image} if is_borderline else set())


def test_look_alikes_are_mistaken_for_each_other_repeatedly():
    """Either direction counts; a mistake that occurs once does not."""
    tux, gnu = make_scene((60, 40, 90, 70)), Scene("abyss", (Kart(0, "gnu", (60, 40, 90, 70)),))
    once = [make_answer(tux, EGO, "gnu"), make_answer(tux, EGO, "kiki")]
    assert find_look_alikes(once) == set()
    assert find_look_alikes([*once, make_answer(gnu, EGO, "Tux ")]) == {frozenset(("tux", "gnu"))}


def test_contradictory_answers_are_those_of_the_failed_check():
    """A wrong total contradicts the counts, and a place its halves, but not the other questions."""
    scene = make_scene((60, 40, 90, 70), (0, 0, 20, 20))
    view = [make_answer(scene, q, "right" if q == LEFT else None) for q, _ in qa_pairs(scene)]
    found = {question for _, question in find_contradictory(view)}
    assert found == {LEFT, FRONT, "Where is gnu relative to the ego car?"}


def test_causes_are_counted_with_the_error_rates_on_either_side(tmp_path):
    """An error has several causes, one without any comes last, and causes without errors are left out."""
    write_frame(tmp_path / "valid", "00000", "abyss")
    image = "valid/00000_00_im.jpg"
    far, near = make_scene((70, 45, 76, 65)), make_scene((60, 40, 90, 70))
    rows = [(far, EGO, "gnu"), (far, EGO, "gnu"), (far, TOTAL, None), (near, EGO, None), (near, TRACK, "scotland")]
    answers = [make_answer(*row, image) for row in rows]
    causes = find_causes(answers, [], tmp_path)
    assert [cause.name for cause in causes] == ["far ego kart", "look-alikes", "no cause found"]
    assert [len(cause.errors) for cause in causes] == [2, 2, 1]
    assert (causes[0].error_rate, causes[0].other_error_rate) == pytest.approx((2 / 3, 1 / 2))
