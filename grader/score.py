"""Turn answers into accuracy and points, in the grader's process, which no bundle can reach."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from homework.data import BenchmarkResult, Sample, compute_points, is_correct, is_exact_match
from homework.labels.questions import classify_caption, classify_question

from .worker import image_key


@dataclass(frozen=True)
class PartGrade:
    """Hold the grade of one model; without a `result` there is a `reason`, and no points."""

    name: str
    result: BenchmarkResult | None = None
    reason: str = ""
    unanswered: int = 0
    parameters: int | None = None
    load_seconds: float | None = None
    answer_seconds: float | None = None
    seconds: float = 0.0

    @property
    def points(self) -> int:
        return compute_points(self.name, self.result.accuracy) if self.result else 0


def match_answers(rows: Sequence[dict], key: str, records: Sequence[dict]) -> list[str | None]:
    """Return the answer to each row, None where it is missing, in whatever order the records come.

    Args:
        rows: rows of the grader's own data.
        key: field of a row that holds the query, `question` or `candidates`.
        records: `image`, `query` and `answer` of each answer from the worker.
    """

    def normalize(query: str | list[str]) -> str:
        return json.dumps(sorted(query) if isinstance(query, list) else query)

    answers = {(record["image"], normalize(record["query"])): record["answer"] for record in records}
    return [answers.get((image_key(row["image_path"]), normalize(row[key]))) for row in rows]


def score_part(part: str, rows: Sequence[dict], records: Sequence[dict]) -> tuple[BenchmarkResult, int]:
    """Compare a worker's answers with the true ones; return the result and the number of missing answers."""
    answers = match_answers(rows, "question" if part == "vlm" else "candidates", records)
    score_row = _score_question if part == "vlm" else _score_choice
    return BenchmarkResult(list(map(score_row, rows, answers))), answers.count(None)


def _score_question(row: dict, answer: str | None) -> Sample:
    question, truth = row["question"], row["answer"]
    prefix, exact = (answer is not None and rule(answer, truth) for rule in (is_correct, is_exact_match))
    return Sample(row["image_path"], question, answer or "", truth, classify_question(question), prefix, exact)


def _score_choice(row: dict, choice: str | None) -> Sample:
    truth = row["candidates"][row["correct_index"]]
    question, correct = " | ".join(row["candidates"]), choice == truth
    return Sample(row["image_path"], question, choice or "", truth, classify_caption(truth), correct, correct)
