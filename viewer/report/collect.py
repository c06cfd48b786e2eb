"""Collect the data of a report: answers with probabilities, CLIP's predictions, speed and sizes."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from homework.base_vlm import BaseVLM
from homework.clip import load_with_tokenizer, predict
from homework.data import Sample
from homework.labels.eval_sets import Scenes, multiple_choice, split_scenes
from homework.labels.questions import classify_caption
from homework.labels.rows import add_image_paths
from homework.models.loading import checkpoint_folder
from homework.utils.errors import InputError
from homework.utils.io import read_json

from ..error_analysis import AnsweredQuestion, answer_all_questions, count_training_pairs, group_by_image
from ..likelihood import compute_probabilities

logger = logging.getLogger(__name__)

CLIP_SET_SIZES = (2000, 1000, 500, 200, 50)  # the largest that the split has enough views for is taken


@dataclass(frozen=True)
class ModelSummary:
    """Size, speed and training curve of a model.

    Args:
        size_mb: of the checkpoint's files, in 10**6 bytes.
        questions_per_second: with all questions about a view batched.
        curve: the training log; empty without `training.json`.
    """

    name: str
    num_parameters: int
    size_mb: float
    questions_per_second: float
    curve: list[dict]


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Args:
        training_pairs: (ego kart, track) -> number of training views.
        models: the evaluated ones by part, `VLM` and, unless the split is too small for it, `CLIP`.
        clip_samples: its answers to multiple-choice questions.
    """

    split: str
    data_dir: Path
    answers: list[AnsweredQuestion]
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
    models = {"VLM": summarize_model(checkpoint, vlm.model, len(answers) / (time.perf_counter() - start))}
    answers = add_probabilities(vlm, answers, data_dir)
    del vlm  # frees its memory for CLIP
    samples = []
    if rows := generate_choices(scenes, data_dir):
        clip, tokenizer = load_with_tokenizer(clip_checkpoint)
        start = time.perf_counter()
        predictions = predict(clip, tokenizer, rows, show_progress=True)
        models["CLIP"] = summarize_model(clip_checkpoint, clip, len(rows) / (time.perf_counter() - start))
        samples = [_score_choice(row, chosen) for row, chosen in zip(rows, predictions, strict=True)]
    return ReportData(split, data_dir, answers, pairs, models, samples)


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


def _score_choice(row: dict, chosen: int) -> Sample:
    choice, truth = row["candidates"][chosen], row["candidates"][row["correct_index"]]
    return Sample(row["image_path"], "", choice, truth, classify_caption(truth), choice == truth, choice == truth)


def summarize_model(checkpoint: str, model: torch.nn.Module, questions_per_second: float) -> ModelSummary:
    """Measure a model's size and read its training curve, if the checkpoint's folder has one."""
    folder = checkpoint_folder(checkpoint)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    log = folder / "training.json"
    curve = read_json(log).get("curve", []) if log.exists() else []
    return ModelSummary(checkpoint, num_parameters, size_mb, questions_per_second, curve)


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
