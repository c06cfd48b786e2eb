"""Analyse a VLM's errors: `python -m viewer.error_analysis homework/weights/vlm --split valid`.

The VLM answers every question about every view of a split. Tables give the exact-match accuracy over the questions of
the official evaluation (no count of 0); consistency is measured over all questions.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from homework.data import is_exact_match
from homework.labels.eval_sets import Scenes, split_scenes
from homework.labels.questions import QUESTION_TYPES, classify_question, in_official_eval, qa_pairs
from homework.labels.rows import DATA_DIR
from homework.labels.scene import Kart, Scene
from homework.utils.cli import run
from homework.utils.errors import InputError
from homework.utils.io import write_json

if TYPE_CHECKING:
    from homework.base_vlm import BaseVLM

logger = logging.getLogger(__name__)

# lower edges, in pixels of the 150x100 view; the names sort as text
SIZE_BINS_PX = {25: "25 or more", 15: "15 to 24", 10: "10 to 14", 7: " 7 to 9", 5: " 5 to 6"}
NUM_MISTAKES = 30  # lines
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
    """Answer all questions about all views; image files are relative to `data_dir`."""
    questions = [(image, scene, *pair) for image, scene in scenes.items() for pair in qa_pairs(scene)]
    answers = vlm.answer([data_dir / image for image, *_ in questions], [question for _, _, question, _ in questions])
    return [AnsweredQuestion(*question, answer) for question, answer in zip(questions, answers, strict=True)]


def count_correct(answers: Iterable[AnsweredQuestion], group: Group) -> tuple[Counter, Counter]:
    """Count (correct, all) answers by (group, question type); answers without a group are left out."""
    correct, total = Counter(), Counter()
    for answer in answers:
        if (name := group(answer)) is not None:
            total[name, answer.question_type] += 1
            correct[name, answer.question_type] += answer.is_correct
    return correct, total


def format_table(title: str, answers: Iterable[AnsweredQuestion], group: Group) -> list[str]:
    """Format the accuracy in percent and the number of questions by group and question type as lines."""
    correct, total = count_correct(answers, group)
    names = sorted({name for name, _ in total})
    types = [type_ for type_ in QUESTION_TYPES if any(total[name, type_] for name in names)]
    rows = [(title, *types)]
    rows += [(f"  {name}", *(_format_share(correct[name, t], total[name, t]) for t in types)) for name in names]
    return [f"{name:24}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in rows] + [""]


def _format_share(correct: int, total: int) -> str:
    return f"{100 * correct / total:.1f} of {total:,}" if total else "-"


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
        checks = list(_check_view(view))
        for name, holds in checks + [("all of a view", all(holds for _, holds in checks))] * bool(checks):
            results[name].append(holds)
    return {name: (sum(passed), len(passed)) for name, passed in results.items()}


def _check_view(view: list[AnsweredQuestion]) -> Iterator[tuple[str, bool]]:
    answers = {row.question: row.answer.strip().lower() for row in view}
    if TOTAL_QUESTION in answers:
        left, right, front, behind = (_parse_number(answers[question]) for question in COUNT_QUESTIONS)
        others = _parse_number(answers[TOTAL_QUESTION]) - 1
        yield "left + right = total - 1", left + right == others
        yield "front + behind = total - 1", front + behind == others
    for row in view:
        if row.question.startswith("Where is "):
            kart = row.deciding_kart.name
            longitudinal = answers[f"Is {kart} in front of or behind the ego car?"]
            lateral = answers[f"Is {kart} to the left or right of the ego car?"]
            yield "where = its two parts", answers[row.question] == f"{longitudinal} and {lateral}"


def _parse_number(answer: str) -> float:
    """Return NaN, which equals nothing, for an answer that is not a number."""
    return float(answer) if answer.isdecimal() else float("nan")


def count_training_pairs(data_dir: Path) -> Counter:
    """Count the training views of each (ego kart, track); empty, with a message, without a training split."""
    try:
        scenes = split_scenes(data_dir, "train")
    except InputError as error:
        logger.info(f"no comparison with the training split: {error}")
        return Counter()
    return Counter((scene.ego.name, scene.track) for scene in scenes.values() if scene.ego)


def analyze(checkpoint: str, /, split: str = "valid", data: str = str(DATA_DIR), output: str | None = None) -> None:
    """Answer every question about a split; print accuracy by difficulty, mistakes and consistency.

    Example: python -m viewer.error_analysis homework/weights/vlm --split valid

    Args:
        checkpoint: VLM checkpoint, a PEFT folder or a base.
        split: folder of the data to evaluate on.
        data: data folder; its `train` tells which pairs of kart and track occur in training.
        output: write the consistency and every answer to this JSON file.
    """
    from homework.base_vlm import BaseVLM  # imports torch, which takes seconds

    data_dir = Path(data)
    scenes = split_scenes(data_dir, split)
    pairs = count_training_pairs(data_dir)
    vlm = BaseVLM(checkpoint)
    vlm.show_progress = True
    answers = answer_all_questions(vlm, scenes, data_dir)
    official = [answer for answer in answers if answer.is_official]
    print(f"{checkpoint} on all of {split}: {len(official):,} questions, exact-match accuracy in percent\n")
    lines = format_table("all", official, lambda _: "")
    lines += format_table("karts in the view", official, group_by_num_karts)
    lines += format_table("kart size in pixels", official, group_by_kart_size)
    if pairs:
        lines += format_table("ego kart on the track", official, group_by_training_pair(pairs))
    mistakes = Counter((row.question_type, row.truth, row.answer) for row in official if not row.is_correct)
    lines += ["most frequent mistakes: type, truth, answer, number"]
    lines += [f"  {row[0]:12}{row[1]:22}{row[2]:22}{number:6,}" for row, number in mistakes.most_common(NUM_MISTAKES)]
    counts = [answer for answer in answers if answer.question_type == "count"]
    lines += ["", *format_table("counts, 0 included", counts, lambda row: "0" if row.truth == "0" else "others")]
    found = consistency(answers)
    lines += ["consistency", *(f"  {name:32}{_format_share(*numbers):>16}" for name, numbers in found.items())]
    print("\n".join(lines))
    if output:
        samples = [
            {"image_file": row.image, "question": row.question, "model_answer": row.answer, "correct_answer": row.truth}
            for row in answers
        ]
        write_json(output, {"consistency": found, "samples": samples})


if __name__ == "__main__":
    run(analyze)
