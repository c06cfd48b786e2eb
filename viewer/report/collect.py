"""Collect the data of a report: answers with probabilities, CLIP's predictions, speed and sizes."""

import logging
import math
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from homework.base_vlm import BaseVLM
from homework.clip import load_with_tokenizer, predict
from homework.data import BenchmarkResult, MultiChoiceQADataset, Sample, VQADataset, benchmark
from homework.labels.eval_sets import Scenes, multiple_choice, split_scenes
from homework.labels.questions import classify_caption
from homework.labels.rows import add_image_paths, drop_rows_without_image
from homework.models.loading import base_id, checkpoint_folder
from homework.models.lora_weights import is_adapter, read_adapter_base
from homework.models.sizes import ParameterCounts, count_parameters
from homework.training.checkpoints import read_manifest
from homework.training.likelihood import compute_probabilities
from homework.utils.errors import InputError

from ..answers import AnsweredQuestion, answer_all_questions, count_training_pairs, group_by_image

logger = logging.getLogger(__name__)

CLIP_SET_SIZES = (2000, 1000, 500, 200, 50)  # the largest that the split has enough views for is taken


@dataclass(frozen=True)
class ModelSummary:
    """Origin, size, speed, training curve and official score of a model.

    Args:
        base: the model that the checkpoint adapts; None if the checkpoint is a base.
        size_mb: of the checkpoint's files, in 10**6 bytes.
        questions_per_second: with all questions about a view batched.
        manifest: date, settings and curve of the training; empty without `training.json`.
        grader_accuracy: on the `grader_questions` questions of valid_grader, 0 to 1; NaN without that split.
    """

    name: str
    base: str | None
    num_parameters: ParameterCounts
    size_mb: float
    questions_per_second: float
    manifest: dict
    grader_accuracy: float
    grader_questions: int


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Args:
        base_answers: of the VLM's base; empty if it is a base itself.
        training_pairs: (ego kart, track) -> number of training views.
        models: the evaluated ones by part, `VLM` and, unless the split is too small for it, `CLIP`.
        clip_samples: its answers to multiple-choice questions.
    """

    split: str
    data_dir: Path
    answers: list[AnsweredQuestion]
    base_answers: list[AnsweredQuestion]
    training_pairs: Counter
    models: dict[str, ModelSummary]
    clip_samples: list[Sample]

    @property
    def official(self) -> list[AnsweredQuestion]:
        """The answers to questions that the official evaluation asks: no counts of 0."""
        return [answer for answer in self.answers if answer.is_official]


def collect_report_data(checkpoint: str, clip_checkpoint: str, split: str, data_dir: Path) -> ReportData:
    """Answer every question about a split with a VLM, and multiple-choice questions with CLIP.

    Raises:
        InputError: a checkpoint or the split is missing or broken.
    """
    scenes = split_scenes(data_dir, split)
    pairs = count_training_pairs(data_dir)
    vlm = BaseVLM(checkpoint_folder(checkpoint))
    vlm.show_progress = True
    start = time.perf_counter()
    answers = answer_all_questions(vlm, scenes, data_dir)
    speed = len(answers) / (time.perf_counter() - start)
    rows = _grader_rows(VQADataset, data_dir)
    graded = benchmark(vlm, rows).accuracy if rows else math.nan
    models = {"VLM": summarize_model(checkpoint, vlm.model, speed, graded, len(rows))}
    answers = add_probabilities(vlm, answers, data_dir)
    del vlm  # frees its memory for the next models
    base_answers = []
    if base := models["VLM"].base:
        vlm = BaseVLM(base)
        vlm.show_progress = True
        base_answers = answer_all_questions(vlm, scenes, data_dir)
        del vlm
    samples = []
    if rows := generate_choices(scenes, data_dir):
        clip, tokenizer = load_with_tokenizer(clip_checkpoint)
        start = time.perf_counter()
        samples = answer_choices(clip, tokenizer, rows)
        speed = len(rows) / (time.perf_counter() - start)
        rows = _grader_rows(MultiChoiceQADataset, data_dir)
        graded = BenchmarkResult(answer_choices(clip, tokenizer, rows)).accuracy if rows else math.nan
        models["CLIP"] = summarize_model(clip_checkpoint, clip, speed, graded, len(rows))
    return ReportData(split, data_dir, answers, base_answers, pairs, models, samples)


def _grader_rows(dataset: type, data_dir: Path) -> list[dict]:
    """Return the questions of valid_grader about images that exist; none, with a message, without that split."""
    try:
        return drop_rows_without_image(dataset("valid_grader", data_dir))
    except InputError as error:
        logger.info(f"no score on the official questions: {error}")
        return []


def add_probabilities(vlm: BaseVLM, answers: list[AnsweredQuestion], data_dir: Path) -> list[AnsweredQuestion]:
    """Add the model's probabilities of its own and of the true answers."""
    pairs = {
        str(data_dir / image): list({(row.question, text): None for row in view for text in (row.answer, row.truth)})
        for image, view in group_by_image(answers).items()
    }
    found = compute_probabilities(vlm, pairs, show_progress=True)

    def add(row: AnsweredQuestion) -> AnsweredQuestion:
        view = found[str(data_dir / row.image)]
        return replace(row, p_truth=view[row.question, row.truth], p_answer=view[row.question, row.answer])

    return [add(row) for row in answers]


def generate_choices(scenes: Scenes, data_dir: Path) -> list[dict]:
    """Generate as many multiple-choice questions as the split allows; none, with a message, if it is too small."""
    for number in CLIP_SET_SIZES:
        try:
            return add_image_paths(multiple_choice(scenes, number, seed=0), data_dir)
        except InputError as error:
            reason = error
    logger.info(f"CLIP is not evaluated: {reason}")
    return []


def answer_choices(clip: torch.nn.Module, tokenizer, rows: list[dict]) -> list[Sample]:
    """Answer multiple-choice questions with CLIP."""

    def score(row: dict, chosen: int) -> Sample:
        choice, truth = row["candidates"][chosen], row["candidates"][row["correct_index"]]
        return Sample(row["image_path"], "", choice, truth, classify_caption(truth), choice == truth, choice == truth)

    return [score(*pair) for pair in zip(rows, predict(clip, tokenizer, rows, show_progress=True), strict=True)]


def summarize_model(checkpoint: str, model: torch.nn.Module, speed: float, *grader_score: float) -> ModelSummary:
    """Measure a model's size, and read where it comes from, as far as the checkpoint's folder says."""
    folder = checkpoint_folder(checkpoint)
    base = base_id(read_adapter_base(folder)) if is_adapter(folder) else None
    size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    counts = count_parameters(model, folder)
    return ModelSummary(checkpoint, base, counts, size_mb, speed, read_manifest(folder), *grader_score)


def read_commit() -> str | None:
    """Return the abbreviated commit of this code, with `-dirty` if files were changed; None outside a clone."""
    root = Path(__file__).parents[2]
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]  # no folder above it
    try:
        done = subprocess.run([*git, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None


def top_errors(answers: Iterable[AnsweredQuestion], number: int) -> list[AnsweredQuestion]:
    """Return the wrong answers with the lowest probability of the truth, at most one per view."""
    wrong = [answer for answer in answers if not answer.is_correct]
    return _first_per_view(sorted(wrong, key=lambda answer: answer.p_truth), number)


def suspected_label_errors(answers: Iterable[AnsweredQuestion], number: int) -> list[tuple[AnsweredQuestion, float]]:
    """Return the wrong answers that are most probably right, at most one per view, with a calibrated accuracy.

    The calibrated accuracy, 0 to 1, is the model's on questions of this type that it answers with at least this
    probability. Answers are ranked by its product with their probability, as confidence means little for a question
    type that the model is bad at.
    """
    num_correct, num_answers, accuracy = Counter(), Counter(), {}
    for answer in sorted(answers, key=lambda answer: -answer.p_answer):
        num_answers[answer.question_type] += 1
        num_correct[answer.question_type] += answer.is_correct
        if not answer.is_correct:
            # Laplace's rule of succession, since the first counts are small
            accuracy[answer] = (num_correct[answer.question_type] + 1) / (num_answers[answer.question_type] + 2)
    ranked = sorted(accuracy, key=lambda answer: -answer.p_answer * accuracy[answer])
    return [(answer, accuracy[answer]) for answer in _first_per_view(ranked, number)]


def _first_per_view(answers: list[AnsweredQuestion], number: int) -> list[AnsweredQuestion]:
    first = {}
    for answer in answers:
        first.setdefault(answer.image, answer)
    return list(first.values())[:number]
