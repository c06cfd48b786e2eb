"""The three datasets and the benchmark. Splits are folders of `data/`, beside the package."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from .labels.questions import classify_question
from .labels.rows import CaptionDataset, MultiChoiceQADataset, VQADataset

__all__ = ["BenchmarkResult", "CaptionDataset", "MultiChoiceQADataset", "VQADataset", "benchmark"]


def is_correct(answer: str, truth: str) -> bool:
    """The course's rule: the answer begins with the truth, ignoring case and outer white space."""
    return answer.strip().lower().startswith(truth.strip().lower())


def is_exact_match(answer: str, truth: str) -> bool:
    """The same, but the whole answer has to match."""
    return answer.strip().lower() == truth.strip().lower()


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `number` questions, as if each were drawn for itself (Wilson 1927).

    Questions on one view or one race hang together, so the true one is wider.
    """
    z = 1.96
    middle, spread = share + z * z / (2 * number), z * math.sqrt(share * (1 - share) / number + (z / (2 * number)) ** 2)
    return (middle - spread) / (1 + z * z / number), (middle + spread) / (1 + z * z / number)


@dataclass(frozen=True)
class Sample:
    """One question with the model's answer and the true one."""

    image_path: str
    question: str
    model_answer: str
    correct_answer: str
    question_type: str
    is_correct: bool
    is_exact: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """`accuracy` is the share of right answers by the course's prefix rule, 0 to 1."""

    samples: list[Sample] = field(repr=False)

    def _share(self, flag: str, kind: str | None = None) -> float:
        values = [getattr(s, flag) for s in self.samples if kind in (None, s.question_type)]
        return sum(values) / len(values) if values else 0.0

    @property
    def accuracy(self) -> float:
        """Prefix rule, every question weighs the same."""
        return self._share("is_correct")

    @property
    def exact_accuracy(self) -> float:
        """Whole-answer rule, every question weighs the same."""
        return self._share("is_exact")

    @property
    def num_by_type(self) -> dict[str, int]:
        """How many questions of each kind."""
        return dict(Counter(sample.question_type for sample in self.samples))

    @property
    def accuracy_by_type(self) -> dict[str, float]:
        """Prefix rule, a kind at a time."""
        return {kind: self._share("is_correct", kind) for kind in self.num_by_type}

    @property
    def exact_accuracy_by_type(self) -> dict[str, float]:
        """Whole-answer rule, a kind at a time."""
        return {kind: self._share("is_exact", kind) for kind in self.num_by_type}

    @property
    def macro_accuracy(self) -> float:
        """Every kind weighs the same, as in the official set."""
        return sum(self.accuracy_by_type.values()) / max(1, len(self.accuracy_by_type))

    @property
    def macro_interval(self) -> tuple[float, float]:
        """The 95 % interval of `macro_accuracy`, by the kinds' variances."""
        variance = sum(p * (1 - p) / self.num_by_type[kind] for kind, p in self.accuracy_by_type.items())
        spread = 1.96 * math.sqrt(variance) / max(1, len(self.num_by_type))
        return max(0.0, self.macro_accuracy - spread), min(1.0, self.macro_accuracy + spread)

    def to_json(self) -> dict:
        """All of the above for a file."""
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
    """At most `max_samples` rows, evenly spread over the dataset."""
    n = len(dataset)
    k = n if max_samples is None else min(n, max_samples)
    return [dataset[i * n // k] for i in range(k)]


def score_answers(rows: Sequence[dict], answers: Sequence[str]) -> BenchmarkResult:
    """Compare a model's answers with the rows' true ones."""
    samples = [
        Sample(
            row["image_path"],
            row["question"],
            answer,
            row["answer"],
            classify_question(row["question"]),
            is_correct(answer, row["answer"]),
            is_exact_match(answer, row["answer"]),
        )
        for row, answer in zip(rows, answers, strict=True)
    ]
    return BenchmarkResult(samples)


def benchmark(vlm, dataset: VQADataset, max_samples: int | None = None) -> BenchmarkResult:
    """Ask a model the questions of a dataset.

    Args:
        vlm: has `answer(image_paths, questions) -> list[str]`.
        max_samples: ask only so many, evenly spread.
    """
    rows = subsample_evenly(dataset, max_samples)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    return score_answers(rows, answers)
