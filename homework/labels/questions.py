"""Questions and captions as data: a template, and a small program over a Scene that fills it.

This is the only place that knows their wording. To add a question, add a row to `QUESTIONS`, of a
known kind or a new one; to add a caption, a row to `CAPTIONS`. A row with `{kart}` is asked once for
each kart but the ego's.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from .scene import Kart, Scene


@dataclass(frozen=True)
class Question:
    """`answer_fn(scene, kart)` answers `template`, or gives None where it can't be asked.

    `kart` is None for questions without `{kart}`.
    """

    question_type: str
    template: str
    answer_fn: Callable[[Scene, Kart | None], str | None]
    needs_ego: bool = True

    @cached_property
    def is_per_kart(self) -> bool:
        """Whether it is asked once for each kart but the ego's."""
        return "{kart}" in self.template


def left_or_right(scene: Scene, kart: Kart) -> str:
    """`left` or `right` of the ego kart."""
    return "left" if scene.is_left(kart) else "right"


def front_or_back(scene: Scene, kart: Kart) -> str:
    """`front` or `back` of the ego kart."""
    return "front" if scene.is_front(kart) else "back"


def _count(test: Callable[[Scene, Kart], bool]) -> Callable[[Scene, None], str]:
    return lambda scene, _: str(len([kart for kart in scene.others if test(scene, kart)]))


QUESTIONS = (
    Question("ego", "What kart is the ego car?", lambda s, _: s.ego.name),
    Question("total", "How many karts are there in the scenario?", lambda s, _: str(len(s.karts))),
    Question("track", "What track is this?", lambda s, _: s.track, needs_ego=False),
    Question("relation", "Is {kart} to the left or right of the ego car?", left_or_right),
    Question("relation", "Is {kart} in front of or behind the ego car?", front_or_back),
    Question(
        "relation",
        "Where is {kart} relative to the ego car?",
        lambda s, k: f"{front_or_back(s, k)} and {left_or_right(s, k)}",
    ),
    Question("count", "How many karts are to the left of the ego car?", _count(lambda s, k: s.is_left(k))),
    Question("count", "How many karts are to the right of the ego car?", _count(lambda s, k: not s.is_left(k))),
    Question("count", "How many karts are in front of the ego car?", _count(lambda s, k: s.is_front(k))),
    Question("count", "How many karts are behind the ego car?", _count(lambda s, k: not s.is_front(k))),
)

QUESTION_TYPES = tuple(dict.fromkeys(row.question_type for row in QUESTIONS))


@dataclass(frozen=True)
class Caption:
    """`template` is true of a scene for each of the values that `values_fn` gives."""

    caption_type: str
    template: str
    values_fn: Callable[[Scene], list[str]]


def _names(test: Callable[[Scene, Kart], bool]) -> Callable[[Scene], list[str]]:
    return lambda scene: [kart.name for kart in scene.others if test(scene, kart)]


CAPTIONS = (
    Caption("ego", "{} is the ego car.", lambda s: [s.ego.name] if s.ego else []),
    Caption("total", "There are {} karts in the scene.", lambda s: [str(len(s.karts))] if s.ego else []),
    Caption("track", "The track is {}.", lambda s: [s.track]),
    Caption("relation", "{} is in front of the ego car.", _names(lambda s, k: s.is_front(k))),
    Caption("relation", "{} is behind the ego car.", _names(lambda s, k: not s.is_front(k))),
    Caption("relation", "{} is left of the ego car.", _names(lambda s, k: s.is_left(k))),
    Caption("relation", "{} is right of the ego car.", _names(lambda s, k: not s.is_left(k))),
)


def generate_questions(scene: Scene, questions: Iterable[Question] = QUESTIONS) -> list[tuple[Question, str, str]]:
    """All (row, question, answer) of a scene. Without a kart: only the track."""
    asked = []
    if scene.ego is None:
        questions = [row for row in questions if not row.needs_ego]
    for row in questions:
        for kart in scene.others if row.is_per_kart else (None,):
            answer = row.answer_fn(scene, kart)
            if answer is not None:
                asked.append((row, row.template.format(kart=kart.name) if kart else row.template, answer))
    return asked


def qa_pairs(scene: Scene) -> Iterator[tuple[str, str]]:
    """All (question, answer) of a scene."""
    for _, question, answer in generate_questions(scene):
        yield question, answer


def captions(scene: Scene) -> Iterator[str]:
    """All captions that are true of a scene. Without a kart: only the track's."""
    for caption in CAPTIONS:
        for value in caption.values_fn(scene):
            yield caption.template.format(value)


def _pattern(template: str) -> str:
    return re.escape(template).replace(r"\{kart\}", r"\S+").replace(r"\{\}", r"(\S+)")


_QUESTION_KINDS = [(re.compile(_pattern(q.template)), q.question_type) for q in QUESTIONS]
_CAPTION_KINDS = [(re.compile(_pattern(c.template)), c) for c in CAPTIONS]


def classify_question(question: str) -> str:
    """The kind of a question, one of `QUESTION_TYPES`; `other` for wording that is not ours."""
    return next((kind for pattern, kind in _QUESTION_KINDS if pattern.fullmatch(question)), "other")


def classify_caption(caption: str) -> str:
    """The kind of a caption: ego, total, track or relation; `other` for wording that is not ours."""
    return next((row.caption_type for pattern, row in _CAPTION_KINDS if pattern.fullmatch(caption)), "other")


def in_official_eval(kind: str, answer: str) -> bool:
    """The official sets hold no count of 0."""
    return kind != "count" or answer != "0"


def sample_weight(kind: str, answer: str) -> float:
    """How much a pair of a kind counts beside the others of its kind in training.

    Three of four counts are 0, and the official sets ask none of those: at full weight a model learns to say
    0 wherever it isn't sure.
    """
    return 1.0 if in_official_eval(kind, answer) else 0.2
