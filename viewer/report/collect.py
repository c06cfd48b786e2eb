"""What a report shows, as numbers: answers and how sure they are, CLIP's choices, speed and sizes."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from homework.base_vlm import BaseVLM
from homework.clip import load_with_tokenizer, predict
from homework.data import BenchmarkResult, score_answers
from homework.labels.eval_sets import Scenes, multiple_choice, split_scenes
from homework.labels.questions import in_official_eval
from homework.labels.rows import add_image_paths
from homework.models.loading import adapter_base, resolve_base
from homework.utils.errors import InputError
from homework.utils.io import read_json

from ..error_analysis import Asked, ask_everything, trained_pairs
from ..likelihood import probabilities

logger = logging.getLogger(__name__)

CLIP_QUESTIONS = (2000, 1000, 500, 200, 50)  # the most that the split has views for


@dataclass(frozen=True)
class Answer:
    """An answer with what it is about.

    Args:
        image: relative to the data folder.
        own, true: the model's probability of its own answer and of the true one, 0 to 1.
    """

    image: str
    asked: Asked
    own: float
    true: float


@dataclass(frozen=True)
class Model:
    """What a model weighs and how it was trained.

    Args:
        parameters, adapter_parameters: how many; the adapter's are among all.
        megabytes, base_megabytes: of the files (10**6 bytes); the base's None where it comes from a hub.
        curve: what was logged while training; empty without `training.json`.
    """

    name: str
    parameters: int
    adapter_parameters: int
    megabytes: float
    base_megabytes: float | None
    curve: list[dict]


@dataclass(frozen=True)
class Measured:
    """All that a report shows. `seconds` is the time a question took, all of a view asked together."""

    split: str
    data: Path
    answers: list[Answer]
    pairs: Counter
    vlm: Model
    seconds: float
    clip: Model | None
    choices: list[tuple[dict, int]]
    choice_seconds: float

    @property
    def official(self) -> list[Asked]:
        """What the official set would ask too: no counts of 0."""
        return [one.asked for one in self.answers if in_official_eval(one.asked.kind, one.asked.truth)]

    @property
    def result(self) -> BenchmarkResult:
        """The scores over `official`."""
        rows = [{"image_path": "", "question": one.question, "answer": one.truth} for one in self.official]
        return score_answers(rows, [one.answer for one in self.official])

    @property
    def views(self) -> list[list[Asked]]:
        """All answers, by view."""
        views = defaultdict(list)
        for one in self.answers:
            views[one.image].append(one.asked)
        return list(views.values())


def measure(checkpoint: str, clip: str, split: str, data: Path) -> Measured:
    """Ask a VLM everything about a split, and CLIP what can be made of it; shows how far it is.

    Raises:
        InputError: no such checkpoint or split, or a broken file in them.
    """
    scenes = split_scenes(data, split)
    pairs = trained_pairs(data)
    vlm = BaseVLM(checkpoint)
    vlm.show_progress = True
    start = time.perf_counter()
    views = ask_everything(vlm, scenes, data)
    seconds = (time.perf_counter() - start) / sum(map(len, views.values()))
    answers = how_sure(vlm, views, data)
    model = describe(checkpoint, vlm.model)
    del vlm  # the next model needs the memory
    clip_model, choices, choice_seconds = choose(clip, scenes, data)
    return Measured(split, data, answers, pairs, model, seconds, clip_model, choices, choice_seconds)


def how_sure(vlm: BaseVLM, views: dict[str, list[Asked]], data: Path) -> list[Answer]:
    """The answers with the model's probabilities of them and of the true ones."""
    texts = {
        str(data / image): list(dict.fromkeys((one.question, text) for one in view for text in (one.answer, one.truth)))
        for image, view in views.items()
    }
    found = probabilities(vlm, texts, progress=True)
    sure = {path: dict(zip(texts[path], values, strict=True)) for path, values in found.items()}
    answers = []
    for image, view in views.items():
        of = sure[str(data / image)]
        answers += [Answer(image, one, of[one.question, one.answer], of[one.question, one.truth]) for one in view]
    return answers


def choose(clip: str, scenes: Scenes, data: Path) -> tuple[Model | None, list[tuple[dict, int]], float]:
    """CLIP, (question, index chosen) of as many multiple-choice questions as can be made, and the seconds of each.

    Nothing, and a word of it, where the split is too small for any.
    """
    rows = []
    for number in CLIP_QUESTIONS:
        try:
            rows = add_image_paths(multiple_choice(scenes, number, seed=0), data)
            break
        except InputError as error:
            reason = error
    if not rows:
        logger.info(f"no questions to CLIP: {reason}")
        return None, [], 0.0
    model, tokenizer = load_with_tokenizer(Path(clip).resolve())
    start = time.perf_counter()
    chosen = predict(model, tokenizer, rows, progress=True)
    seconds = (time.perf_counter() - start) / len(rows)
    return describe(clip, model), list(zip(rows, chosen, strict=True)), seconds


def describe(checkpoint: str, model: torch.nn.Module) -> Model:
    """Sizes, and the training curve if the checkpoint's folder holds one."""
    folder = Path(checkpoint)
    base, base_megabytes, lora = folder, None, 0
    if (folder / "adapter_config.json").exists():
        base = Path(resolve_base(adapter_base(folder)))
        base_megabytes = _megabytes(base) if base.is_dir() else None
        # by the file, since in a model that answers LoRA may be a part of the base's weights
        weights = load_file(folder / "adapter_model.safetensors")
        lora = sum(weight.numel() for name, weight in weights.items() if "lora_" in name)
    own = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    training = folder / "training.json"
    curve = read_json(training).get("curve", []) if training.exists() else []
    return Model(
        checkpoint,
        own + lora,
        lora,
        _megabytes(folder),
        base_megabytes,
        curve,
    )


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def most_wrong(answers: Iterable[Answer], number: int) -> list[Answer]:
    """The wrong answers whose truth the model holds for least likely, one a view."""
    return _one_a_view(sorted((one for one in answers if not one.asked.is_right), key=lambda one: one.true), number)


def doubtful_labels(answers: Iterable[Answer], number: int) -> list[tuple[Answer, float]]:
    """The wrong answers that are likeliest right, so that the label may be wrong; one a view.

    Beside each: how often, 0 to 1, the model's answers of this kind are right where it is at least as sure. Being sure
    counts by this share, since of a kind that the model is bad at it says little.
    """
    accuracy_by_type = defaultdict(list)
    for one in answers:
        accuracy_by_type[one.asked.kind].append(one)
    shares: dict[int, float] = {}
    for kind in accuracy_by_type.values():
        right = 0
        for place, one in enumerate(sorted(kind, key=lambda one: -one.own), 1):
            right += one.asked.is_right
            shares[id(one)] = (right + 1) / (place + 2)  # Laplace's rule, as the first few say little
    wrong = [one for kind in accuracy_by_type.values() for one in kind if not one.asked.is_right]
    wrong.sort(key=lambda one: -one.own * shares[id(one)])
    return [(one, shares[id(one)]) for one in _one_a_view(wrong, number)]


def _one_a_view(ordered: Iterable[Answer], number: int) -> list[Answer]:
    first: dict[str, Answer] = {}
    for one in ordered:
        first.setdefault(one.image, one)
    return list(first.values())[:number]
