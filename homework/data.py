"""Re-export the three datasets and benchmark a VLM. Splits are folders of `data/`, beside the package."""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .labels.duplicates import Estimate, bootstrap_by_moment, places_of_images
from .labels.paraphrases import rephrase
from .labels.questions import classify_question, is_possible_answer, question_template
from .labels.rows import CaptionDataset, MultiChoiceQADataset, VQADataset

__all__ = ["BenchmarkResult", "CaptionDataset", "MultiChoiceQADataset", "VQADataset", "benchmark"]


def is_correct(answer: str, truth: str) -> bool:
    """Return whether an answer starts with the true one, ignoring case and outer white space."""
    return answer.strip().lower().startswith(truth.strip().lower())


def is_exact_match(answer: str, truth: str) -> bool:
    """Return whether an answer equals the true one, ignoring case and outer white space."""
    return answer.strip().lower() == truth.strip().lower()


# The course's points of each part, `vlm` and `clip`; the grader's too.
MAX_POINTS = 50
FULL_SCORE_ACCURACY = 0.70
ZERO_SCORE_ACCURACY = {"vlm": 0.0, "clip": 0.20}  # CLIP: chance with five candidates
MAX_EXTRA_POINTS = {"vlm": 0, "clip": 5}
EXTRA_CREDIT_RANGE = (0.80, 0.85)  # accuracy from which extra credit begins, and which gives all of it


def _interpolate(value: float, low: float, high: float) -> float:
    return min(1.0, max(0.0, (value - low) / (high - low)))


def compute_points(part: str, accuracy: float) -> int:
    """Return the points of a part as the course gives them, rounded to a whole number.

    They are 0 to 50, linear in accuracy: from 0 to 70 % for the VLM, from 20 to 70 % for CLIP. From 80 to 85 % CLIP
    earns 0 to 5 more as extra credit, so both parts make 105 at most.
    """
    points = MAX_POINTS * _interpolate(accuracy, ZERO_SCORE_ACCURACY[part], FULL_SCORE_ACCURACY)
    return round(points + MAX_EXTRA_POINTS[part] * _interpolate(accuracy, *EXTRA_CREDIT_RANGE))


def print_points(part: str, accuracy: float) -> None:
    """Print the points that the grader gives for an accuracy, and its rule."""
    rule = f"0 at {ZERO_SCORE_ACCURACY[part]:.0%}, {MAX_POINTS} from {FULL_SCORE_ACCURACY:.0%} on, linear between"
    if extra := MAX_EXTRA_POINTS[part]:
        low, high = EXTRA_CREDIT_RANGE
        rule += f"; {extra} more from {low:.0%} to {high:.0%}"
    print(f"the grader's points for {accuracy:.1%}: {compute_points(part, accuracy)} of {MAX_POINTS} ({rule})")


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

    @functools.cached_property
    def by_moment(self) -> dict[str, Estimate]:
        """The accuracy by question type with its interval, see `estimate_by_moment`."""
        samples = self.samples
        return estimate_by_moment(
            [sample.image_path for sample in samples],
            [sample.question for sample in samples],
            [sample.question_type for sample in samples],
            [sample.is_correct for sample in samples],
        )

    def to_json(self) -> dict:
        """Return samples and accuracies as a JSON object."""
        accuracies = {name: value for name, value in vars(self).items() if name not in ("samples", "by_moment")}
        return accuracies | {"samples": [asdict(sample) for sample in self.samples]}


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


ALL = "all questions"  # in the result of `estimate_by_moment`


def estimate_by_moment(
    images: Sequence[str], questions: Sequence[str], types: Sequence[str], are_correct: Iterable[bool]
) -> dict[str, Estimate]:
    """Estimate accuracies with each moment of the game counted once, and their 95 % intervals.

    Most frames after a race's end repeat one moment, and the views of a moment are right or wrong together: see
    `bootstrap_by_moment`.

    Args:
        images, questions, types, are_correct: of n answers: image files, what was asked, its type, whether it is right.

    Returns:
        type -> `Estimate`, `MEAN` -> that of the mean of the types, and `ALL` -> that of all questions.
    """
    places, are_correct = places_of_images(images), list(are_correct)
    moments, items = [moment for moment, _ in places], list(zip([view for _, view in places], questions, strict=True))
    one_group = bootstrap_by_moment(moments, items, [ALL] * len(items), are_correct)
    return bootstrap_by_moment(moments, items, types, are_correct) | {ALL: one_group[ALL]}


def wilson_interval(accuracy: float, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval (Wilson 1927) of an accuracy over `total` questions.

    It assumes independent questions. Questions about the same view or race are correlated, so the true one is wider.
    """
    z = 1.96
    center = accuracy + z * z / (2 * total)
    spread = z * math.sqrt(accuracy * (1 - accuracy) / total + (z / (2 * total)) ** 2)
    return (center - spread) / (1 + z * z / total), (center + spread) / (1 + z * z / total)


def print_accuracies(title: str, columns: Sequence[str], rows: Iterable[tuple]) -> None:
    """Print a table of accuracies in percent; the last one is by moment, with its 95 % interval.

    Args:
        columns: names of the accuracies but the last.
        rows: (name, accuracies but the last, number of questions, `Estimate` of the last).
    """
    print(title)
    print(f"{'':16}{''.join(f'{column:>9}' for column in (*columns, 'n', 'once'))}{'95 %':>13}")
    for name, accuracies, n, estimate in rows:
        numbers = "".join(f"{100 * accuracy:z9.1f}" for accuracy in accuracies)  # z: no -0.0
        once, low, high = (100 * number for number in estimate)
        print(f"  {name:14}{numbers}{n:>9}{once:z9.1f}{low:z7.1f}-{high:<z5.1f}".rstrip())
    print("once: each moment of the game counted once; 95 %: its interval, drawn again by moment")


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


@dataclass(frozen=True)
class ParaphraseResult:
    """Answers to the same questions in the course's words and in other ones.

    Args:
        course: of the course's words.
        words, agreement, possible: by question type, shares of the answers in other words that are right, that equal
            the answer in the course's words, and that are possible at all, 0 to 1.
        wordings: other wording -> share of its answers that are right.
    """

    course: BenchmarkResult
    words: dict[str, float]
    agreement: dict[str, float]
    possible: dict[str, float]
    wordings: dict[str, float]


def benchmark_paraphrased(vlm, dataset: Sequence[dict]) -> ParaphraseResult:
    """Ask a VLM each question of a dataset in the course's words, and in the ten others that no training uses.

    Raises:
        InputError: a question is not one of the course's.
    """
    asked = [(row, *words) for row in dataset for words in ((None, row["question"]), *rephrase(row["question"]))]
    answers = vlm.answer([row["image_path"] for row, *_ in asked], [text for *_, text in asked])
    own, shares = [], {name: defaultdict(list) for name in ("words", "agreement", "possible", "wordings")}
    for (row, wording, _), answer in zip(asked, answers, strict=True):
        if wording is None:
            own.append(answer)
            continue
        question_type, right = classify_question(row["question"]), is_correct(answer, row["answer"])
        shares["words"][question_type].append(right)
        shares["agreement"][question_type].append(is_exact_match(answer, own[-1]))
        shares["possible"][question_type].append(is_possible_answer(row["question"], answer))
        shares["wordings"][wording].append(right)
    means = {name: {key: sum(ones) / len(ones) for key, ones in by_key.items()} for name, by_key in shares.items()}
    return ParaphraseResult(score_answers(dataset, own), **means)
