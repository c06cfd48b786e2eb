"""Filter and sort the views of a split for the grid, and count the choices of each filter."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from ..answers import SIZE_BINS_PX
from .library import ViewEntry

CONFIDENCE_BINS = {0.95: "95 % or more", 0.8: "80 to 95 %", 0.5: "50 to 80 %", 0.0: "below 50 %"}
NO_KART = "no kart"


@dataclass(frozen=True)
class Answer:
    """A question about a view with the model's answer; the truth is None where there are no labels.

    Args:
        confidence: the model's probability of its answer, 0 to 1.
        contradictions: the checks between this answer and others that fail, e.g. `left + right = total - 1`.
    """

    question: str
    question_type: str
    truth: str | None
    answer: str
    confidence: float
    is_correct: bool | None
    contradictions: list[str] = field(default_factory=list)


class ViewFilters(BaseModel):
    """A choice of each filter; an empty one matches every view."""

    track: str = ""
    kart: str = ""
    number: str = ""
    size: str = ""
    error: str = ""
    confidence: str = ""


Answers = Mapping[str, Sequence[Answer]]  # of the views that have been answered, by key


def facet_values(view: ViewEntry, answers: Sequence[Answer] | None) -> dict[str, set[str]]:
    """Return what a view matches in each filter, under the names of `ViewFilters`."""
    scene = view.scene
    values = {
        "track": {scene.track},
        "kart": {kart.name for kart in scene.karts},
        "number": {str(len(scene.karts))},
        "size": {_bin(SIZE_BINS_PX, view.min_side_px)} if scene.karts else {NO_KART},
    }
    if answers is None:
        return values | {"error": set(), "confidence": set()}
    errors = {answer.question_type for answer in answers if not answer.is_correct}
    errors = errors | {"any"} if errors else {"none"}
    if any(answer.contradictions for answer in answers):
        errors.add("contradiction")
    return values | {"error": errors, "confidence": {_bin(CONFIDENCE_BINS, min_confidence(answers))}}


def _bin(bins: Mapping[float, str], value: float) -> str:
    return next(name.strip() for edge, name in bins.items() if value >= edge)


def min_confidence(answers: Sequence[Answer]) -> float:
    """Return the confidence of the least confident answer."""
    return min(answer.confidence for answer in answers)


def num_wrong(answers: Sequence[Answer]) -> int:
    """Count the wrong answers."""
    return sum(not answer.is_correct for answer in answers)


# What comes first; views without answers, or without karts, come last.
SORT_KEYS: dict[str, Callable[[ViewEntry, Sequence[Answer] | None], float]] = {
    "name": lambda view, answers: 0,
    "confidence": lambda view, answers: min_confidence(answers) if answers else 2,
    "errors": lambda view, answers: -num_wrong(answers) if answers else 1,
    "size": lambda view, answers: view.min_side_px,
    "number": lambda view, answers: -len(view.scene.karts),
}


def list_views(
    views: Mapping[str, ViewEntry], answers: Answers, filters: ViewFilters, sort: str
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Return the keys of the matching views in order, and filter -> choice -> number of views.

    A filter restricts the counts of the others, not its own, so that its choice can be replaced. Uploads match all.
    """
    chosen = {name: value for name, value in filters.model_dump().items() if value}
    found, counts = [], {name: Counter() for name in ViewFilters.model_fields}
    for key, view in views.items():
        if view.scene is None:
            found.append(key)
            continue
        values = facet_values(view, answers.get(key))
        failed = [name for name, value in chosen.items() if value not in values[name]]
        if not failed:
            found.append(key)
        for name in failed if len(failed) == 1 else counts if not failed else ():
            counts[name].update(values[name])
    if sort != "name":
        labelled = [key for key in found if views[key].scene]
        found = sorted(labelled, key=lambda key: SORT_KEYS[sort](views[key], answers.get(key))) or found
    return found, {name: _in_order(name, count) for name, count in counts.items()}


def _in_order(name: str, counts: Counter) -> dict[str, int]:
    orders = {
        "size": [NO_KART, *(each.strip() for each in reversed(SIZE_BINS_PX.values()))],
        "confidence": list(reversed(CONFIDENCE_BINS.values())),
    }
    order = orders.get(name) or sorted(counts)
    return {value: counts[value] for value in order if counts[value]}


def card(view: ViewEntry, answers: Sequence[Answer] | None) -> dict:
    """Return what the grid shows about a view; errors and confidence are None until it has been answered."""
    scene = view.scene
    return {
        "key": view.key,
        "track": scene and scene.track,
        "ego": scene and scene.ego and scene.ego.name,
        "number": scene and len(scene.karts),
        "wrong": num_wrong(answers) if answers and scene else None,
        "confidence": min_confidence(answers) if answers else None,
        "contradicts": any(answer.contradictions for answer in answers or ()),
    }
