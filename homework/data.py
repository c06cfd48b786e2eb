"""Re-export the three datasets and benchmark a VLM. Splits are folders of `data/`, beside the package."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .labels.questions import classify_question, question_template
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


class BenchmarkResult:
    """Answers of a model to the questions of a dataset. All accuracies are between 0 and 1.

    `accuracy` and `exact_accuracy` are micro accuracies by the course's prefix match and by exact match. In
    `macro_accuracy`, the mean of `accuracy_by_type`, question types weigh the same, as in the official set.
    """

    def __init__(self, samples: Sequence[Sample]):
        self.num_by_type = dict(Counter(sample.question_type for sample in samples))
        self.accuracy, self.accuracy_by_type = self._mean("is_correct", samples)
        self.exact_accuracy, self.exact_accuracy_by_type = self._mean("is_exact", samples)
        self.macro_accuracy = sum(self.accuracy_by_type.values()) / max(1, len(self.num_by_type))
        self.samples = samples

    def _mean(self, flag: str, samples: Sequence[Sample]) -> tuple[float, dict[str, float]]:
        """Return the share of samples with a flag, in total and by question type."""
        num_true = Counter(sample.question_type for sample in samples if getattr(sample, flag))
        return num_true.total() / max(1, len(samples)), {
            name: num_true[name] / n for name, n in self.num_by_type.items()
        }

    @property
    def macro_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of `macro_accuracy` (normal approximation), assuming independent questions."""
        variance = sum(p * (1 - p) / self.num_by_type[name] for name, p in self.accuracy_by_type.items())
        spread = 1.96 * math.sqrt(variance) / max(1, len(self.num_by_type))
        return max(0.0, self.macro_accuracy - spread), min(1.0, self.macro_accuracy + spread)

    def to_json(self) -> dict:
        """Return samples and accuracies as a JSON object."""
        return vars(self) | {"samples": [asdict(sample) for sample in self.samples]}


def guessing_baselines(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Compute the accuracy by question type, 0 to 1, of guessing without the picture.

    Args:
        pairs: questions with their true answers.

    Returns:
        `most frequent answer`, to each question always the true answer that most of its views have, and `chance`, any
        of its true answers.
    """
    truths = defaultdict(Counter)
    for question, truth in pairs:
        truths[classify_question(question), question_template(question)][truth] += 1
    frequent, chance, total = Counter(), Counter(), Counter()
    for (question_type, _), counts in truths.items():
        frequent[question_type] += max(counts.values())
        chance[question_type] += counts.total() / len(counts)
        total[question_type] += counts.total()
    hits = {"most frequent answer": frequent, "chance": chance}
    return {name: {type_: count[type_] / total[type_] for type_ in total} for name, count in hits.items()}


def print_accuracies(title: str, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    """Print a table of accuracies in percent, with their 95 % intervals.

    Args:
        columns: names of the accuracies.
        rows: (name, accuracies, number of questions, interval of the first accuracy).
    """
    print(title)
    print(f"{'':16}{''.join(f'{column:>9}' for column in (*columns, 'n'))}{'95 %':>16}")
    for name, accuracies, n, (low, high) in rows:
        numbers = "".join(f"{100 * accuracy:z9.1f}" for accuracy in accuracies)
        print(f"  {name:14}{numbers}{n:>9}{100 * low:z10.1f}-{100 * high:<z5.1f}".rstrip())  # z: no -0.0


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
