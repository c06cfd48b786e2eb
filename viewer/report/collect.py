"""Collect the data of a report: answers with probabilities, CLIP's predictions, speed and sizes."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from homework.base_vlm import BaseVLM
from homework.clip import load_with_tokenizer, predict
from homework.labels.eval_sets import Scenes, multiple_choice, split_scenes
from homework.labels.rows import add_image_paths
from homework.models.loading import checkpoint_folder, resolve_base
from homework.models.lora_weights import read_adapter_base
from homework.utils.errors import InputError
from homework.utils.io import read_json

from ..error_analysis import AnsweredQuestion, answer_all_questions, count_training_pairs, group_by_image
from ..likelihood import compute_probabilities

logger = logging.getLogger(__name__)

CLIP_SET_SIZES = (2000, 1000, 500, 200, 50)  # the largest that the split has enough views for is taken


@dataclass(frozen=True)
class ScoredAnswer(AnsweredQuestion):
    """An answer with the model's probabilities, 0 to 1, of that answer and of the true one."""

    p_answer: float
    p_truth: float


@dataclass(frozen=True)
class ModelSummary:
    """Size, speed and training curve of a model.

    Args:
        num_parameters, num_lora_parameters: the latter are included in the former.
        size_mb, base_size_mb: of the files, in 10**6 bytes; the base's is None if it comes from a hub.
        seconds_per_question: with all questions about a view batched.
        curve: the training log; empty without `training.json`.
    """

    name: str
    num_parameters: int
    num_lora_parameters: int
    size_mb: float
    base_size_mb: float | None
    seconds_per_question: float
    curve: list[dict]


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Args:
        training_pairs: (ego kart, track) -> number of training views.
        clip: None if the split is too small for multiple-choice questions.
        clip_predictions: (question, index of the chosen caption).
    """

    split: str
    data_dir: Path
    answers: list[ScoredAnswer]
    training_pairs: Counter
    vlm: ModelSummary
    clip: ModelSummary | None
    clip_predictions: list[tuple[dict, int]]

    @property
    def official(self) -> list[ScoredAnswer]:
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
    summary = summarize_model(checkpoint, vlm.model, (time.perf_counter() - start) / len(answers))
    scored = add_probabilities(vlm, answers, data_dir)
    del vlm  # frees its memory for CLIP
    return ReportData(split, data_dir, scored, pairs, summary, *run_clip(clip_checkpoint, scenes, data_dir))


def add_probabilities(vlm: BaseVLM, answers: list[AnsweredQuestion], data_dir: Path) -> list[ScoredAnswer]:
    """Add the model's probabilities of its own and of the true answers."""
    pairs = {
        str(data_dir / image): list({(row.question, text): None for row in view for text in (row.answer, row.truth)})
        for image, view in group_by_image(answers).items()
    }
    found = compute_probabilities(vlm, pairs, show_progress=True)
    probability = {path: dict(zip(pairs[path], values, strict=True)) for path, values in found.items()}
    scored = []
    for row in answers:
        own = probability[str(data_dir / row.image)]
        p_answer, p_truth = own[row.question, row.answer], own[row.question, row.truth]
        scored.append(ScoredAnswer(**vars(row), p_answer=p_answer, p_truth=p_truth))
    return scored


def run_clip(checkpoint: str, scenes: Scenes, data_dir: Path) -> tuple[ModelSummary | None, list[tuple[dict, int]]]:
    """Answer as many multiple-choice questions as the split allows: (summary, (question, chosen index)).

    Empty, with a message, if the split is too small.
    """
    rows = []
    for number in CLIP_SET_SIZES:
        try:
            rows = add_image_paths(multiple_choice(scenes, number, seed=0), data_dir)
            break
        except InputError as error:
            reason = error
    if not rows:
        logger.info(f"CLIP is not evaluated: {reason}")
        return None, []
    clip, tokenizer = load_with_tokenizer(checkpoint_folder(checkpoint))
    start = time.perf_counter()
    predictions = predict(clip, tokenizer, rows, show_progress=True)
    summary = summarize_model(checkpoint, clip, (time.perf_counter() - start) / len(rows))
    return summary, list(zip(rows, predictions, strict=True))


def summarize_model(checkpoint: str, model: torch.nn.Module, seconds_per_question: float) -> ModelSummary:
    """Measure a model's size and read its training curve, if the checkpoint's folder has one."""
    folder = checkpoint_folder(checkpoint)
    base_size_mb, num_lora = None, 0
    if (folder / "adapter_config.json").exists():
        base = Path(resolve_base(read_adapter_base(folder)))
        base_size_mb = _folder_size_mb(base) if base.is_dir() else None
        # counted in the file, since LoRA may be merged into the base's weights for inference
        weights = load_file(folder / "adapter_model.safetensors")
        num_lora = sum(weight.numel() for name, weight in weights.items() if "lora_" in name)
    num_base = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    log = folder / "training.json"
    curve = read_json(log).get("curve", []) if log.exists() else []
    size_mb = _folder_size_mb(folder)
    return ModelSummary(checkpoint, num_base + num_lora, num_lora, size_mb, base_size_mb, seconds_per_question, curve)


def _folder_size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def top_errors(answers: Iterable[ScoredAnswer], number: int) -> list[ScoredAnswer]:
    """Return the wrong answers with the lowest probability of the truth, at most one per view."""
    wrong = (answer for answer in answers if not answer.is_correct)
    return _first_per_view(sorted(wrong, key=lambda answer: answer.p_truth), number)


def suspected_label_errors(answers: Iterable[ScoredAnswer], number: int) -> list[tuple[ScoredAnswer, float]]:
    """Return the wrong answers that are most probably right, at most one per view, with a calibrated accuracy.

    The calibrated accuracy, 0 to 1, is the model's on questions of this type that it answers with at least this
    probability. Answers are ranked by its product with their probability, as confidence means little for a question
    type that the model is bad at.
    """
    accuracy: dict[int, float] = {}
    num_correct, num_answers = Counter(), Counter()
    answers = sorted(answers, key=lambda answer: -answer.p_answer)
    for answer in answers:
        num_answers[answer.question_type] += 1
        num_correct[answer.question_type] += answer.is_correct
        # Laplace's rule of succession, since the first counts are small
        accuracy[id(answer)] = (num_correct[answer.question_type] + 1) / (num_answers[answer.question_type] + 2)
    wrong = [answer for answer in answers if not answer.is_correct]
    wrong.sort(key=lambda answer: -answer.p_answer * accuracy[id(answer)])
    return [(answer, accuracy[id(answer)]) for answer in _first_per_view(wrong, number)]


def _first_per_view(answers: Iterable[ScoredAnswer], number: int) -> list[ScoredAnswer]:
    first: dict[str, ScoredAnswer] = {}
    for answer in answers:
        first.setdefault(answer.image, answer)
    return list(first.values())[:number]
