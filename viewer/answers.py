"""Answer every question about a split with a VLM, and group, score and cross-check the answers."""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homework.data import BenchmarkResult, guessing_baselines, is_exact_match, score_answers
from homework.labels.eval_sets import Scenes, split_scenes
from homework.labels.questions import classify_question, in_official_eval, qa_pairs, question_template
from homework.labels.scene import Kart, Scene
from homework.utils.errors import InputError

if TYPE_CHECKING:
    from homework.base_vlm import BaseVLM

logger = logging.getLogger(__name__)

# lower edges, in pixels of the 150x100 view; the names sort as text
SIZE_BINS_PX = {25: "25 or more", 15: "15 to 24", 10: "10 to 14", 7: " 7 to 9", 5: " 5 to 6"}
QUESTIONS_PER_SECOND = 200  # of TuxNano on two busy cores, for an estimate; idle ones reach 346 (docs/BENCHMARKS.md)
MAX_KARTS_BIN = 5  # views with at least this many karts form one group
TOTAL_QUESTION = "How many karts are there in the scenario?"
COUNT_QUESTIONS = [
    f"How many karts are {side} the ego car?" for side in ("to the left of", "to the right of", "in front of", "behind")
]


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question about a view with the true answer and the model's. `image` is relative to the data folder.

    The model's probabilities of either answer, 0 to 1, are added for a report.
    """

    image: str
    scene: Scene
    question: str
    truth: str
    answer: str
    p_truth: float = math.nan
    p_answer: float = math.nan

    @property
    def question_type(self) -> str:
        """One of QUESTION_TYPES."""
        return classify_question(self.question)

    @property
    def template(self) -> str:
        """The question with `{kart}` in place of the kart that it is about."""
        return question_template(self.question)

    @property
    def is_correct(self) -> bool:
        """Whether the whole answer matches."""
        return is_exact_match(self.answer, self.truth)

    @property
    def is_official(self) -> bool:
        """Whether the official evaluation asks such a question."""
        return in_official_eval(self.question_type, self.truth)

    @property
    def deciding_kart(self) -> Kart | None:
        """The kart that makes the question hard: the one asked about, or the smallest one for a number of karts."""
        if self.question_type == "track":
            return None
        if self.question_type == "ego":
            return self.scene.ego
        if self.question_type == "relation":
            words = self.question.split()
            return next(kart for kart in self.scene.others if kart.name in words)
        return min(self.scene.karts, key=lambda kart: kart.min_side)


Group = Callable[[AnsweredQuestion], str | None]


def answer_all_questions(vlm: "BaseVLM", scenes: Scenes, data_dir: Path) -> list[AnsweredQuestion]:
    """Answer all questions about all views, and say how many; image files are relative to `data_dir`."""
    questions = [(image, scene, *pair) for image, scene in scenes.items() for pair in qa_pairs(scene)]
    seconds = math.ceil(len(questions) / QUESTIONS_PER_SECOND)
    estimate = f"about {seconds} s with TuxNano on two cores"
    logger.info(f"answering {len(questions):,} questions about {len(scenes):,} views, {estimate}")
    answers = vlm.answer([data_dir / image for image, *_ in questions], [question for _, _, question, _ in questions])
    return [AnsweredQuestion(*question, answer) for question, answer in zip(questions, answers, strict=True)]


def score(answers: Iterable[AnsweredQuestion]) -> BenchmarkResult:
    """Score answers as the benchmark does."""
    answers = list(answers)
    rows = [{"image_path": row.image, "question": row.question, "answer": row.truth} for row in answers]
    return score_answers(rows, [row.answer for row in answers])


def count_correct(answers: Iterable[AnsweredQuestion], group: Group) -> tuple[Counter, Counter]:
    """Count (correct, all) answers by (group, question type); answers without a group are left out."""
    correct, total = Counter(), Counter()
    for answer in answers:
        if (name := group(answer)) is not None:
            total[name, answer.question_type] += 1
            correct[name, answer.question_type] += answer.is_correct
    return correct, total


def group_by_num_karts(answer: AnsweredQuestion) -> str:
    """Group by the number of eligible karts in the view."""
    num_karts = len(answer.scene.karts)
    return f"{num_karts}" if num_karts < MAX_KARTS_BIN else f"{MAX_KARTS_BIN} or more"


def group_by_kart_size(answer: AnsweredQuestion) -> str | None:
    """Group by the short edge of the deciding kart's box."""
    kart = answer.deciding_kart
    if kart is None:
        return None
    return next(name for edge, name in SIZE_BINS_PX.items() if kart.min_side >= edge)


def group_by_training_pair(pairs: Counter) -> Group:
    """Return a grouping by whether `pairs` has training views of this (ego kart, track)."""

    def group(answer: AnsweredQuestion) -> str | None:
        ego, track = answer.scene.ego, answer.scene.track
        return ego and ("in train" if pairs[ego.name, track] else "not in train")

    return group


def group_by_image(answers: Iterable[AnsweredQuestion]) -> dict[str, list[AnsweredQuestion]]:
    """Collect the answers about each image."""
    by_image = defaultdict(list)
    for answer in answers:
        by_image[answer.image].append(answer)
    return dict(by_image)


def consistency(answers: Iterable[AnsweredQuestion]) -> dict[str, tuple[int, int]]:
    """Count (consistent, checked) answers to different questions about one view, whether correct or wrong.

    A view's numbers must satisfy left + right = front + behind = total - 1, and each "where is" answer must be made of
    the answers to its two parts.
    """
    results = defaultdict(list)
    for view in group_by_image(answers).values():
        checks = [(name, holds) for name, holds, _ in check_view(view)]
        for name, holds in checks + [("all of a view", all(holds for _, holds in checks))] * bool(checks):
            results[name].append(holds)
    return {name: (sum(passed), len(passed)) for name, passed in results.items()}


def check_view(view: Iterable[AnsweredQuestion]) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield (name, whether it holds, its questions) of each check on the answers about one view."""
    answers = {row.question: row.answer.strip().lower() for row in view}
    if TOTAL_QUESTION in answers:
        left, right, front, behind = (_parse_number(answers[question]) for question in COUNT_QUESTIONS)
        others = _parse_number(answers[TOTAL_QUESTION]) - 1
        yield "left + right = total - 1", left + right == others, [TOTAL_QUESTION, *COUNT_QUESTIONS[:2]]
        yield "front + behind = total - 1", front + behind == others, [TOTAL_QUESTION, *COUNT_QUESTIONS[2:]]
    for question, answer in answers.items():
        if question.startswith("Where is "):
            kart = question.split()[2]
            halves = f"Is {kart} in front of or behind the ego car?", f"Is {kart} to the left or right of the ego car?"
            holds = answer == " and ".join(answers[half] for half in halves)
            yield "where = its two parts", holds, [question, *halves]


def _parse_number(answer: str) -> float:
    """Return NaN, which equals nothing, for an answer that is not a number."""
    return float(answer) if answer.isdecimal() else float("nan")


def score_guesses(answers: Iterable[AnsweredQuestion]) -> dict[str, dict[str, float]]:
    """Compute the accuracy of guessing the true answers; see `homework.data.guessing_baselines`."""
    return guessing_baselines((answer.question, answer.truth) for answer in answers)


def count_training_pairs(data_dir: Path) -> Counter:
    """Count the training views of each (ego kart, track); empty, with a message, without a training split."""
    try:
        scenes = split_scenes(data_dir, "train")
    except InputError as error:
        logger.info(f"no comparison with the training split: {error}")
        return Counter()
    return Counter((scene.ego.name, scene.track) for scene in scenes.values() if scene.ego)


def mean_of_types(by_type: dict[str, float]) -> float:
    """Return the mean of a number per question type."""
    return sum(by_type.values()) / len(by_type)


def format_percent(share: float) -> str:
    """Format a share, 0 to 1, in percent with one decimal; a dash if it is NaN."""
    return "–" if math.isnan(share) else f"{100 * share:z.1f}"  # z: no -0.0
