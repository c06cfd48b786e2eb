"""Attribute a VLM's errors to causes that the labels or the other answers show, such as a far ego kart."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from homework.labels.rows import parse_image_file
from homework.labels.scene import MIN_KART_SIZE_PX, VIEW_CENTER, Kart, detected_karts

from .answers import AnsweredQuestion, check_view, group_by_image

# All lengths are in pixels of the 150x100 view.
# A kart is far if the shorter side of its box is below this: on sample/valid, the shipped VLM's answers about smaller
# karts are wrong three times as often as about those of 9 to 11 pixels, from where on the size matters little.
FAR_PX = 9
MIN_OVERLAP = 0.3  # of the smaller box
MAX_EASY_NUMBER = 3
LABEL_MARGIN_PX = 1
MIN_CONFUSIONS = 2  # wrong answers that mistake one name for another, in either direction, make a pair of look-alikes

Condition = Callable[[AnsweredQuestion], bool]


@dataclass(frozen=True)
class Cause:
    """A condition under which answers are often wrong, described in a sentence, and the wrong answers under it.

    Args:
        error_rate, other_error_rate: share of wrong answers where the condition holds, and elsewhere; NaN of no answers
            and where the condition holds for wrong ones only.
    """

    name: str
    description: str
    errors: list[AnsweredQuestion]
    error_rate: float
    other_error_rate: float


def find_causes(
    answers: Sequence[AnsweredQuestion], all_answers: Iterable[AnsweredQuestion], data_dir: Path
) -> list[Cause]:
    """List the causes of the wrong answers, the most frequent first; last come the errors without any.

    An error may have several causes. Those without errors are left out.

    Args:
        answers: right and wrong ones.
        all_answers: every answer about their views, which may contradict them.
        data_dir: folder of the frames.
    """
    num_errors = sum(not answer.is_correct for answer in answers)

    def describe(name: str, description: str, condition: Condition, is_of_errors: bool = False) -> Cause:
        found = [answer for answer in answers if condition(answer)]
        errors = [answer for answer in found if not answer.is_correct]
        num_others = 0 if is_of_errors else len(answers) - len(found)
        rate = len(errors) / len(found) if found and not is_of_errors else math.nan
        return Cause(
            name, description, errors, rate, (num_errors - len(errors)) / num_others if num_others else math.nan
        )

    look_alikes, contradictory = find_look_alikes(answers), find_contradictory(all_answers)
    borderline = find_borderline_views({answer.image for answer in answers}, data_dir)
    tests = {
        "far ego kart": (f"The shorter side of the ego kart's box has less than {FAR_PX} pixels.", is_ego_far),
        "far other kart": (
            f"The kart asked about, or for a number the smallest one, is another than the ego kart and has a side of "
            f"less than {FAR_PX} pixels.",
            is_other_kart_far,
        ),
        "overlap": (
            f"The box of the kart asked about, or for a number any box, shares at least {MIN_OVERLAP:.0%} of its area, "
            "or of the other's if that is smaller, with another kart's.",
            is_overlapped,
        ),
        f"count beyond {MAX_EASY_NUMBER}": (f"The true number is above {MAX_EASY_NUMBER}.", is_large_number),
        "look-alikes": (
            f"The name given and the true one are mistaken for each other at least {MIN_CONFUSIONS} times.",
            lambda answer: frozenset((answer.truth, answer.answer.strip().lower())) in look_alikes,
            True,
        ),
        "label doubtful": (
            f"The label rule decides by at most {LABEL_MARGIN_PX} pixel: a kart just reaches the minimum size or just "
            "misses it, is nearly as close to the centre as the ego kart, or lies hardly to either side of it.",
            lambda answer: is_label_doubtful(answer, answer.image in borderline),
        ),
        "contradiction between answers": (
            "The answer does not agree with another one about the same view: numbers do not add up, or a place differs "
            "from its two halves.",
            lambda answer: (answer.image, answer.question) in contradictory,
        ),
    }
    causes = [describe(name, *test) for name, test in tests.items()]
    explained = {error for cause in causes for error in cause.errors}
    causes.sort(key=lambda cause: -len(cause.errors))
    rest = [answer for answer in answers if not answer.is_correct and answer not in explained]
    causes.append(Cause("no cause found", "None of the conditions above holds.", rest, math.nan, math.nan))
    return [cause for cause in causes if cause.errors]


def is_ego_far(answer: AnsweredQuestion) -> bool:
    """Return whether the ego kart, which all questions but the track's depend on, is far."""
    return answer.question_type != "track" and answer.scene.ego.min_side < FAR_PX


def is_other_kart_far(answer: AnsweredQuestion) -> bool:
    """Return whether the kart that makes the question hard is far and not the ego kart."""
    kart = answer.deciding_kart
    return kart is not None and kart is not answer.scene.ego and kart.min_side < FAR_PX


def is_overlapped(answer: AnsweredQuestion) -> bool:
    """Return whether a kart that the question is about overlaps another one."""
    if answer.question_type == "track":
        return False
    kart = answer.deciding_kart if answer.question_type in ("ego", "relation") else None
    pairs = (pair for pair in combinations(answer.scene.karts, 2) if kart is None or kart in pair)
    return any(share_overlap(*pair) >= MIN_OVERLAP for pair in pairs)


def share_overlap(one: Kart, other: Kart) -> float:
    """Return the area that two boxes share, relative to the smaller one: 0 to 1."""
    (a1, b1, a2, b2), (c1, d1, c2, d2) = one.box, other.box
    shared = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
    return shared / min((a2 - a1) * (b2 - b1), (c2 - c1) * (d2 - d1))


def is_large_number(answer: AnsweredQuestion) -> bool:
    """Return whether the true answer is a number above 3."""
    return answer.truth.isdecimal() and int(answer.truth) > MAX_EASY_NUMBER


def is_label_doubtful(answer: AnsweredQuestion, is_borderline: bool) -> bool:
    """Return whether the label rule decides the answer by at most a pixel.

    Args:
        is_borderline: whether it decides by a pixel which karts of the view are large enough.
    """
    scene = answer.scene
    if answer.question_type == "track":
        return False
    if answer.question_type == "ego":
        nearest = sorted(math.dist(kart.center, VIEW_CENTER) for kart in scene.karts)[:2]
        return nearest[-1] - nearest[0] <= LABEL_MARGIN_PX < len(nearest)
    if answer.question_type != "relation" and is_borderline:
        return True
    karts = {"relation": [answer.deciding_kart], "count": scene.others}.get(answer.question_type, [])
    sideways = any(word in answer.question for word in ("left", "right", "Where"))
    along = any(word in answer.question for word in ("front", "behind", "Where"))
    return any(
        (sideways and abs(kart.center[0] - scene.ego.center[0]) <= LABEL_MARGIN_PX)
        or (along and abs(kart.center[1] - scene.ego.center[1]) <= LABEL_MARGIN_PX)
        for kart in karts
    )


def find_borderline_views(images: Iterable[str], data_dir: Path) -> set[str]:
    """Return the images with a kart that just reaches or just misses the minimum size."""
    from homework.labels.frame_info import read_frame_info  # deferred, see there

    views = defaultdict(dict)
    for image in images:
        frame, view = parse_image_file(image)
        views[frame][view] = image
    borderline = set()
    for frame, images_by_view in views.items():
        info = read_frame_info(data_dir / f"{frame}_info.json")
        for view, image in images_by_view.items():
            sides = {kart.min_side for kart in detected_karts(info, view)}
            if sides & {MIN_KART_SIZE_PX - LABEL_MARGIN_PX, MIN_KART_SIZE_PX}:
                borderline.add(image)
    return borderline


def find_look_alikes(answers: Iterable[AnsweredQuestion]) -> set[frozenset[str]]:
    """Return the pairs of karts or tracks that are mistaken for each other repeatedly."""
    pairs = Counter(
        frozenset((answer.truth, answer.answer.strip().lower()))
        for answer in answers
        if answer.question_type in ("ego", "track") and not answer.is_correct
    )
    return {pair for pair, number in pairs.items() if number >= MIN_CONFUSIONS}


def find_contradictory(answers: Iterable[AnsweredQuestion]) -> set[tuple[str, str]]:
    """Return (image, question) of all answers that fail a check against others about the same view."""
    return {
        (image, question)
        for image, view in group_by_image(answers).items()
        for _, holds, questions in check_view(view)
        if not holds
        for question in questions
    }
