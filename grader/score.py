"""Answers -> accuracy -> points. Runs in the parent, which alone decides what is right."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from homework.data import BenchmarkResult, Sample, is_correct, is_exact_match
from homework.labels.questions import classify_caption, classify_question

from .runner import COURSE_SAMPLES
from .worker import image_key

POINTS = 50.0
FULL = 0.70  # accuracy that gives all points
ZERO = {"vlm": 0.0, "clip": 0.20}  # accuracy that gives none: for CLIP, chance with five candidates
EXTRA_POINTS = 5.0
EXTRA_FROM, EXTRA_TO = 0.80, 0.85


def _linear(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def points(part: str, accuracy: float) -> float:
    """0 to 50, linear: the VLM from 0 to 70 % accuracy, CLIP from 20 to 70 %."""
    return POINTS * _linear(accuracy, ZERO[part], FULL)


def extra_points(accuracy: float) -> float:
    """Extra credit, 0 to 5, linear from 80 to 85 % accuracy.

    The contract names it after the points of both models, without saying whether it is given once. It is read
    here as a line of each model's score: either can earn it, and the total can reach 110 of 100.
    """
    return EXTRA_POINTS * _linear(accuracy, EXTRA_FROM, EXTRA_TO)


@dataclass(frozen=True)
class Part:
    """What came of one model. Without a `result` there is a `reason`, and no points."""

    name: str
    result: BenchmarkResult | None = None
    reason: str = ""
    unanswered: int = 0
    parameters: int | None = None
    load_seconds: float | None = None
    answer_seconds: float | None = None
    seconds: float = 0.0

    @property
    def points(self) -> float:
        """0 to 50."""
        return points(self.name, self.result.accuracy) if self.result else 0.0

    @property
    def extra(self) -> float:
        """0 to 5."""
        return extra_points(self.result.accuracy) if self.result else 0.0

    @property
    def course(self) -> BenchmarkResult | None:
        """The part of the result that the course's grader would have asked for."""
        return BenchmarkResult(self.result.samples[:COURSE_SAMPLES]) if self.result else None


def match(rows: Sequence[dict], key: str, records: Sequence[dict]) -> list[str | None]:
    """The answer to each row, None where there is none. Order doesn't matter, of the records or of the candidates.

    Args:
        key: the row's field with what was asked, `question` or `candidates`.
        records: `image`, `asked` and `answer` of each answer that the child sent.
    """

    def asked(content: str | list[str]) -> str:
        return json.dumps(sorted(content) if isinstance(content, list) else content)

    answers = {(record["image"], asked(record["asked"])): record["answer"] for record in records}
    return [answers.get((image_key(row["image_path"]), asked(row[key]))) for row in rows]


def score(part: str, rows: Sequence[dict], records: Sequence[dict]) -> tuple[BenchmarkResult, int]:
    """Compare the answers with the true ones; a missing answer is a wrong one.

    Args:
        rows: of the grader's own `VQADataset` or `MultiChoiceQADataset`.
        records: of the child.

    Returns:
        the result, and how many answers are missing.
    """
    answers = match(rows, "question" if part == "vlm" else "candidates", records)
    score_row = _score_question if part == "vlm" else _score_choice
    samples = [score_row(row, answer) for row, answer in zip(rows, answers, strict=True)]
    return BenchmarkResult(samples), answers.count(None)


def _score_question(row: dict, answer: str | None) -> Sample:
    question, truth = row["question"], row["answer"]
    prefix, strict = (answer is not None and rule(answer, truth) for rule in (is_correct, is_exact_match))
    return Sample(row["image_path"], question, answer or "", truth, classify_question(question), prefix, strict)


def _score_choice(row: dict, choice: str | None) -> Sample:
    truth = row["candidates"][row["correct_index"]]
    question, right = " | ".join(row["candidates"]), choice == truth
    return Sample(row["image_path"], question, choice or "", truth, classify_caption(truth), right, right)
