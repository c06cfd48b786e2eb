"""Re-export the three datasets and benchmark a VLM. Splits are folders of `data/`, beside the package."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .labels.questions import classify_question
from .labels.rows import CaptionDataset, MultiChoiceQADataset, VQADataset

__all__ = ["BenchmarkResult", "CaptionDataset", "MultiChoiceQADataset", "VQADataset", "benchmark"]


def is_correct(answer: str, truth: str) -> bool:
    """Return whether an answer starts with the true one, ignoring case and outer white space."""
    return answer.strip().lower().startswith(truth.strip().lower())


def is_exact_match(answer: str, truth: str) -> bool:
    """Return whether an answer equals the true one, ignoring case and outer white space."""
    return answer.strip().lower() == truth.strip().lower()


def wilson_interval(accuracy: float, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval (Wilson 1927) of an accuracy over `total` questions.

    It assumes independent questions. Questions about the same view or race are correlated, so the true one is wider.
    """
    z = 1.96
    center = accuracy + z * z / (2 * total)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / total + (z / (2 * total)) ** 2)
    return (center - spread) / (1 + z * z / total), (center + spread) / (1 + z * z / total)


@dataclass(frozen=True)
class Sample:
    """A question with the model's answer and the true one."""

    image_path: str
    question: str
    model_answer: str
    correct_answer: str
    question_type: str
    is_correct: bool
    is_exact: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """Answers of a model to the questions of a dataset. All accuracies are between 0 and 1."""

    samples: list[Sample] = field(repr=False)

    def _mean(self, flag: str, question_type: str | None = None) -> float:
        values = [getattr(s, flag) for s in self.samples if question_type in (None, s.question_type)]
        return sum(values) / len(values) if values else 0.0

    @property
    def accuracy(self) -> float:
        """Return the micro accuracy by the course's prefix match."""
        return self._mean("is_correct")

    @property
    def exact_accuracy(self) -> float:
        """Return the micro accuracy by exact match."""
        return self._mean("is_exact")

    @property
    def num_by_type(self) -> dict[str, int]:
        """Count the questions of each type."""
        return dict(Counter(sample.question_type for sample in self.samples))

    @property
    def accuracy_by_type(self) -> dict[str, float]:
        """Return the prefix-match accuracy of each question type."""
        return {name: self._mean("is_correct", name) for name in self.num_by_type}

    @property
    def exact_accuracy_by_type(self) -> dict[str, float]:
        """Return the exact-match accuracy of each question type."""
        return {name: self._mean("is_exact", name) for name in self.num_by_type}

    @property
    def macro_accuracy(self) -> float:
        """Return the mean of `accuracy_by_type`: question types weigh the same, as in the official set."""
        return sum(self.accuracy_by_type.values()) / max(1, len(self.accuracy_by_type))

    @property
    def macro_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of `macro_accuracy` (normal approximation), assuming independent questions."""
        variance = sum(p * (1 - p) / self.num_by_type[name] for name, p in self.accuracy_by_type.items())
        spread = 1.96 * math.sqrt(variance) / max(1, len(self.num_by_type))
        return max(0.0, self.macro_accuracy - spread), min(1.0, self.macro_accuracy + spread)

    def to_json(self) -> dict:
        """Return samples and accuracies as a JSON object."""
        names = (
            "accuracy",
            "exact_accuracy",
            "macro_accuracy",
            "accuracy_by_type",
            "exact_accuracy_by_type",
            "num_by_type",
        )
        return {name: getattr(self, name) for name in names} | {"samples": [asdict(s) for s in self.samples]}


def subsample_evenly(dataset: Sequence, max_samples: int | None) -> list:
    """Return at most `max_samples` rows, evenly spaced over the dataset."""
    n = len(dataset)
    k = n if max_samples is None else min(n, max_samples)
    return [dataset[i * n // k] for i in range(k)]


def score_answers(rows: Sequence[dict], answers: Sequence[str]) -> BenchmarkResult:
    """Score a model's answers to the questions of the rows."""
    samples = []
    for row, answer in zip(rows, answers, strict=True):
        question, truth = row["question"], row["answer"]
        scores = is_correct(answer, truth), is_exact_match(answer, truth)
        samples.append(Sample(row["image_path"], question, answer, truth, classify_question(question), *scores))
    return BenchmarkResult(samples)


def benchmark(vlm, dataset: VQADataset, max_samples: int | None = None) -> BenchmarkResult:
    """Evaluate a VLM on the questions of a dataset.

    Args:
        vlm: a model with `answer(image_paths, questions) -> list[str]`.
        max_samples: evaluate at most this many rows, evenly spaced over the dataset.
    """
    rows = subsample_evenly(dataset, max_samples)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    return score_answers(rows, answers)
