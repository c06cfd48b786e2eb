"""Define questions and captions as tables: a template, and a function that fills it from a Scene.

No other module knows their wording. To add a question, add a row to `QUESTIONS`, with a known or a new question type;
to add a caption, add a row to `CAPTIONS`. A question with `{kart}` is asked about each kart except the ego kart.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .game import KARTS, TRACKS
from .scene import Kart, Scene


@dataclass(frozen=True)
class Question:
    """A question template, answered by `answer_fn(scene, kart)`: None if the question does not apply.

    `kart` is None for templates without `{kart}`. The questions `in_short_list` are asked about a picture if nobody
    says which.
    """

    question_type: str
    template: str
    answer_fn: Callable[[Scene, Kart | None], str | None]
    needs_ego: bool = True
    in_short_list: bool = False


def left_or_right(scene: Scene, kart: Kart) -> str:
    """Return `left` or `right`, relative to the ego kart."""
    return "left" if scene.is_left(kart) else "right"


def front_or_back(scene: Scene, kart: Kart) -> str:
    """Return `front` or `back`, relative to the ego kart."""
    return "front" if scene.is_front(kart) else "back"


def _count(predicate: Callable[[Scene, Kart], bool]) -> Callable[[Scene, None], str]:
    return lambda scene, _: str(len([kart for kart in scene.others if predicate(scene, kart)]))


QUESTIONS = (
    Question("ego", "What kart is the ego car?", lambda s, _: s.ego.name, in_short_list=True),
    Question("total", "How many karts are there in the scenario?", lambda s, _: str(len(s.karts)), in_short_list=True),
    Question("track", "What track is this?", lambda s, _: s.track, needs_ego=False, in_short_list=True),
    Question("relation", "Is {kart} to the left or right of the ego car?", left_or_right),
    Question("relation", "Is {kart} in front of or behind the ego car?", front_or_back),
    Question(
        "relation",
        "Where is {kart} relative to the ego car?",
        lambda s, k: f"{front_or_back(s, k)} and {left_or_right(s, k)}",
    ),
    Question(
        "count", "How many karts are to the left of the ego car?", _count(lambda s, k: s.is_left(k)), in_short_list=True
    ),
    Question("count", "How many karts are to the right of the ego car?", _count(lambda s, k: not s.is_left(k))),
    Question(
        "count", "How many karts are in front of the ego car?", _count(lambda s, k: s.is_front(k)), in_short_list=True
    ),
    Question("count", "How many karts are behind the ego car?", _count(lambda s, k: not s.is_front(k))),
)

SHORT_LIST = tuple(row.template for row in QUESTIONS if row.in_short_list)
QUESTION_TYPES = tuple(dict.fromkeys(row.question_type for row in QUESTIONS))


@dataclass(frozen=True)
class Caption:
    """A caption template, true of a scene with each of the values that `values_fn(scene)` returns."""

    caption_type: str
    template: str
    values_fn: Callable[[Scene], list[str]]


def _names(predicate: Callable[[Scene, Kart], bool]) -> Callable[[Scene], list[str]]:
    return lambda scene: [kart.name for kart in scene.others if predicate(scene, kart)]


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
    """Return (row, question, answer) of all questions about a scene; without karts, only the track's."""
    asked = []
    if scene.ego is None:
        questions = [row for row in questions if not row.needs_ego]
    for row in questions:
        for kart in scene.others if "{kart}" in row.template else (None,):
            answer = row.answer_fn(scene, kart)
            if answer is not None:
                asked.append((row, row.template.format(kart=kart.name) if kart else row.template, answer))
    return asked


def qa_pairs(scene: Scene) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) of all questions about a scene."""
    for _, question, answer in generate_questions(scene):
        yield question, answer


def captions(scene: Scene) -> Iterator[str]:
    """Yield all captions that are true of a scene; without karts, only the track caption."""
    for caption in CAPTIONS:
        for value in caption.values_fn(scene):
            yield caption.template.format(value)


def template_pattern(template: str) -> re.Pattern:
    """Return the pattern of all questions or captions of a template; its group is the kart or the value."""
    return re.compile(re.escape(template).replace(r"\{kart\}", r"(\S+)").replace(r"\{\}", r"(\S+)"))


_QUESTION_PATTERNS = [(template_pattern(row.template), row) for row in QUESTIONS]
_CAPTION_PATTERNS = [(template_pattern(row.template), row.caption_type) for row in CAPTIONS]


def classify_question(question: str) -> str:
    """Return the type of a question, one of `QUESTION_TYPES`, or `other` if it matches no template."""
    return next((row.question_type for pattern, row in _QUESTION_PATTERNS if pattern.fullmatch(question)), "other")


def question_template(question: str) -> str:
    """Return the template of a question, with `{kart}` for the kart that it is about; itself if it matches none."""
    return next((row.template for pattern, row in _QUESTION_PATTERNS if pattern.fullmatch(question)), question)


def split_question(question: str) -> tuple[str, str]:
    """Return a question's template, itself if it matches none, and the kart that it is about, or an empty string."""
    found = ((row.template, pattern.fullmatch(question)) for pattern, row in _QUESTION_PATTERNS)
    return next(((template, (*match.groups(), "")[0]) for template, match in found if match), (question, ""))


def is_possible_answer(question: str, answer: str) -> bool:
    """Return whether an answer is of the kind that one of the course's questions has, right or wrong."""
    template, _ = split_question(question)
    row = next(row for row in QUESTIONS if row.template == template)
    if row.question_type == "relation":
        # one kart in the middle, and another in each corner
        corners = [(x, y, x + 10, y + 10) for x in (0, 140) for y in (0, 90)]
        karts = [Kart(0, "tux", (70, 45, 80, 55)), *(Kart(i, "gnu", box) for i, box in enumerate(corners, 1))]
        scene = Scene("", tuple(karts))
        return answer in {row.answer_fn(scene, kart) for kart in scene.others}
    if row.question_type in ("total", "count"):
        return answer.isdecimal()
    return answer in {"ego": KARTS, "track": TRACKS}.get(row.question_type, (answer,))


def classify_caption(caption: str) -> str:
    """Return the type of a caption (ego, total, track or relation), or `other` if it matches no template."""
    return next((name for pattern, name in _CAPTION_PATTERNS if pattern.fullmatch(caption)), "other")


def in_official_eval(question_type: str, answer: str) -> bool:
    """Return whether the official evaluation includes such a question: it has no counts of 0."""
    return question_type != "count" or answer != "0"


def generate_official_questions(scene: Scene) -> list[tuple[Question, str, str]]:
    """Return those of `generate_questions` that the official evaluation would include."""
    return [asked for asked in generate_questions(scene) if in_official_eval(asked[0].question_type, asked[2])]


def sample_weight(question_type: str, answer: str) -> float:
    """Return the training weight of a QA pair relative to others of its type.

    Three of four counts are 0, and the official evaluation includes none of them: at full weight a model learns to
    answer 0 whenever it is not confident.
    """
    return 1.0 if in_official_eval(question_type, answer) else 0.2
