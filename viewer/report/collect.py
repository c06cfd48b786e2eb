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
        seconds_per_question: with all questions about a view batched.
        curve: the training log; empty without `training.json`.
    """

    name: str
    num_parameters: int
    size_mb: float
    seconds_per_question: float
    curve: list[dict]


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Args:
        training_pairs: (ego kart, track) -> number of training views.
        clip: None if the split is too small for multiple-choice questions.
        clip_samples: its answers to them.
    """

    split: str
    data_dir: Path
    answers: list[AnsweredQuestion]
    training_pairs: Counter
    vlm: ModelSummary
    clip: ModelSummary | None
    clip_samples: list[Sample]

    @property
    def official(self) -> list[AnsweredQuestion]:
        """The answers to questions that the official evaluation asks: no counts of 0."""
        return [answer for answer in self.answers if answer.is_official]

    @property
    def models(self) -> dict[str, ModelSummary]:
        """The evaluated models by part."""
        return {"VLM": self.vlm} | ({"CLIP": self.clip} if self.clip else {})


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
    summary = summarize_model(checkpoint, vlm.model, (time.perf_counter() - start) / len(answers))
    scored = add_probabilities(vlm, answers, data_dir)
    del vlm  # frees its memory for CLIP
    return ReportData(split, data_dir, scored, pairs, summary, *run_clip(clip_checkpoint, scenes, data_dir))


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


def run_clip(checkpoint: str, scenes: Scenes, data_dir: Path) -> tuple[ModelSummary | None, list[Sample]]:
    """Answer as many multiple-choice questions as the split allows; none, with a message, if it is too small."""
    for number in CLIP_SET_SIZES:
        try:
            rows = add_image_paths(multiple_choice(scenes, number, seed=0), data_dir)
            break
        except InputError as error:
            reason = error
    else:
        logger.info(f"CLIP is not evaluated: {reason}")
        return None, []
    clip, tokenizer = load_with_tokenizer(checkpoint)
    start = time.perf_counter()
    predictions = predict(clip, tokenizer, rows, show_progress=True)
    summary = summarize_model(checkpoint, clip, (time.perf_counter() - start) / len(rows))
    samples = []
    for row, chosen in zip(rows, predictions, strict=True):
        choice, truth = row["candidates"][chosen], row["candidates"][row["correct_index"]]
        correct = choice == truth
        samples.append(Sample(row["image_path"], "", choice, truth, classify_caption(truth), correct, correct))
    return summary, samples


def summarize_model(checkpoint: str, model: torch.nn.Module, seconds_per_question: float) -> ModelSummary:
    """Measure a model's size and read its training curve, if the checkpoint's folder has one."""
    folder = checkpoint_folder(checkpoint)
    num_parameters = sum(weight.numel() for weight in model.parameters())
    size_mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    log = folder / "training.json"
    curve = read_json(log).get("curve", []) if log.exists() else []
    return ModelSummary(checkpoint, num_parameters, size_mb, seconds_per_question, curve)


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
