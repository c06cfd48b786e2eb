"""The three datasets and the benchmark. Splits are folders of `data/`, beside the package."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from .errors import InputError, no_split, read_json
from .progress import note
from .questions import question_kind

DATA_DIR = Path(__file__).parent.parent / "data"

# One command a kind of file that can be made from the frames.
_MAKERS = {"qa_pairs": "generate_qa", "captions": "generate_captions"}


def guard_training_split(split: str) -> None:
    """Keep what a model is measured on out of its training.

    Raises:
        InputError: the split's name begins with `valid`.
    """
    if Path(split).name.startswith("valid"):
        raise InputError(split, "a split to measure on, not to train on", "train on a split not named valid...")


def digest_of(parts: Iterable[str]) -> str:
    """A short name of texts in their order: other texts have another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]


def with_path(rows: Sequence[dict], data_dir: Path) -> list[dict]:
    """The rows with `image_path` added: where their `image_file` lies."""
    return [{**row, "image_path": str(data_dir / row["image_file"])} for row in rows]


class _Rows(Sequence):
    """All rows of a split's files that match `pattern`, each with `image_path` added."""

    pattern: str
    fields: ClassVar[dict[str, type]]

    def __init__(self, split: str, data_dir: str | Path | None = None):
        """Read the files.

        Raises:
            InputError: no such split or file, or a row that lacks something; it names the file.
        """
        data_dir = Path(data_dir or DATA_DIR)
        folder = data_dir / split
        if not folder.is_dir():
            raise no_split(folder, "no such split")
        files = sorted(folder.glob(self.pattern))
        if not files:
            maker = next((m for name, m in _MAKERS.items() if name in self.pattern), None)
            remedy = f"run `python -m homework.{maker} generate --split {split}`" if maker else "take another split"
            raise InputError(folder, f"no {self.pattern} in it", remedy)
        self.split, self.rows = split, []
        for file in files:
            content = read_json(file)
            if not isinstance(content, list) or not content:
                raise InputError(file, "expected a list of rows", "make the file again")
            for number, row in enumerate(content):
                problem = self._problem(row)
                if problem:
                    raise InputError(file, f"row {number} {problem}", "make the file again")
            self.rows += with_path(content, data_dir)

    def _problem(self, row) -> str | None:
        if not isinstance(row, dict) or any(not isinstance(row.get(k), t) for k, t in self.fields.items()):
            return f"lacks one of {', '.join(self.fields)}"
        return None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class VQADataset(_Rows):
    """Rows of every `*_qa_pairs.json`: image_path, image_file, question, answer."""

    pattern = "*_qa_pairs.json"
    fields: ClassVar = {"image_file": str, "question": str, "answer": str}


class CaptionDataset(_Rows):
    """Rows of every `*_captions.json`: image_path, image_file, caption."""

    pattern = "*_captions.json"
    fields: ClassVar = {"image_file": str, "caption": str}


class MultiChoiceQADataset(_Rows):
    """Rows of every `*_mc_qas.json`: image_path, image_file, candidates, correct_index."""

    pattern = "*_mc_qas.json"
    fields: ClassVar = {"image_file": str, "candidates": list, "correct_index": int}

    def _problem(self, row) -> str | None:
        problem = super()._problem(row)
        if problem is None and not all(isinstance(candidate, str) for candidate in row["candidates"]):
            return "has a candidate that is not a text"
        if problem is None and not 0 <= row["correct_index"] < len(row["candidates"]):
            return f"on {row['image_file']} has no true candidate"
        return problem


def with_image(rows: Sequence[dict]) -> list[dict]:
    """The rows whose image is there, and a line about the others: a part of a data set has pair files of the whole.

    Raises:
        InputError: no row's image is there.
    """
    there = {path for path in {row["image_path"] for row in rows} if os.path.exists(path)}  # Path.exists can raise
    kept = [row for row in rows if row["image_path"] in there]
    if not kept:
        raise InputError(rows[0]["image_path"], "no such image, nor that of any other pair", "restore the images")
    if len(kept) < len(rows):
        missing = next(row["image_path"] for row in rows if row["image_path"] not in there)
        note(f"{len(rows) - len(kept)} of {len(rows)} pairs left out: no such image, e.g. {missing}")
    return kept


def is_correct(answer: str, truth: str) -> bool:
    """The course's rule: the answer begins with the truth, ignoring case and outer white space."""
    return answer.strip().lower().startswith(truth.strip().lower())


def is_strictly_correct(answer: str, truth: str) -> bool:
    """The same, but the whole answer has to match."""
    return answer.strip().lower() == truth.strip().lower()


def interval(share: float, number: int) -> tuple[float, float]:
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
    kind: str
    is_correct: bool
    is_strict: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """`accuracy` is the share of right answers by the course's prefix rule, 0 to 1."""

    samples: list[Sample] = field(repr=False)

    def _share(self, flag: str, kind: str | None = None) -> float:
        values = [getattr(s, flag) for s in self.samples if kind in (None, s.kind)]
        return sum(values) / len(values) if values else 0.0

    @property
    def accuracy(self) -> float:
        """Prefix rule, every question weighs the same."""
        return self._share("is_correct")

    @property
    def strict_accuracy(self) -> float:
        """Whole-answer rule, every question weighs the same."""
        return self._share("is_strict")

    @property
    def counts(self) -> dict[str, int]:
        """How many questions of each kind."""
        return dict(Counter(sample.kind for sample in self.samples))

    @property
    def by_kind(self) -> dict[str, float]:
        """Prefix rule, a kind at a time."""
        return {kind: self._share("is_correct", kind) for kind in self.counts}

    @property
    def strict_by_kind(self) -> dict[str, float]:
        """Whole-answer rule, a kind at a time."""
        return {kind: self._share("is_strict", kind) for kind in self.counts}

    @property
    def mean_of_kinds(self) -> float:
        """Every kind weighs the same, as in the official set."""
        return sum(self.by_kind.values()) / max(1, len(self.by_kind))

    @property
    def mean_interval(self) -> tuple[float, float]:
        """The 95 % interval of `mean_of_kinds`, by the kinds' variances."""
        variance = sum(p * (1 - p) / self.counts[kind] for kind, p in self.by_kind.items())
        spread = 1.96 * math.sqrt(variance) / max(1, len(self.counts))
        return max(0.0, self.mean_of_kinds - spread), min(1.0, self.mean_of_kinds + spread)

    def to_json(self) -> dict:
        """All of the above for a file."""
        names = ("accuracy", "strict_accuracy", "mean_of_kinds", "by_kind", "strict_by_kind", "counts")
        return {name: getattr(self, name) for name in names} | {"samples": [asdict(s) for s in self.samples]}


def pick(dataset: Sequence, max_samples: int | None) -> list:
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
            question_kind(row["question"]),
            is_correct(answer, row["answer"]),
            is_strictly_correct(answer, row["answer"]),
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
    rows = pick(dataset, max_samples)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    return score_answers(rows, answers)
