"""Evaluate predictions of views: accuracy by question type, and what limits it, each moment counted once."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.labels.duplicates import MEAN, Estimate, bootstrap_by_moment
from homework.labels.paraphrases import HELD_OUT_QUESTIONS
from homework.labels.questions import QUESTIONS, Question, generate_questions, in_official_eval
from homework.labels.scene import Kart, Scene
from homework.models.tux_nano.model import TuxNano

from .dataset import PretrainDataset
from .dense_heads import match_relations
from .targets import KART_ID, UNKNOWN
from .text_stage import TextStage

Predict = Callable[[Tensor], dict[str, Tensor]]  # pixels [b, 3, h, w] -> fused logits, as the connector reads them
Row = tuple[str, float]  # a group of things that are measured, and whether one of it is right

Measured = tuple[Hashable, Hashable, str, float]  # moment, item, group, value: see `bootstrap_by_moment`

BATCH_SIZE = 100
IMAGE_TARGETS = ("ego", "total", "track", "relation", "count")
MAX_KART_BIN = 5  # views of this many karts or more are one group
SIZE_BINS_PX = (20, 12, 8, 5)  # lower bounds of a box's shorter side
COVERED_SHARE = 0.5  # of a box, by another's: the kart counts as covered


def base_predictor(base: Path) -> Predict:
    """Return what a base predicts, before its text model."""
    model = TuxNano.load(base)
    return torch.no_grad()(
        lambda pixels: model.connector.prediction_heads(model.vision_encoder(pixels).last_hidden_state)
    )


def accuracy_rows(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Iterator[Row]:
    """Yield one row per question about a view, by type, as the official benchmark asks: without counts of 0.

    Args:
        logits, targets: of one view.
    """
    for name in ("ego", "total", "track"):
        if targets[name] != UNKNOWN:
            yield name, float(logits[name].argmax(-1) == targets[name])
    present, correct = match_relations(logits["relation"], targets["relation"])
    yield from (("relation", float(one)) for one in correct[present])
    for predicted, count in zip(logits["count"].argmax(-1), targets["count"], strict=True):
        if count > 0:
            yield "count", float(predicted == count)


def limit_rows(logits: dict[str, Tensor], scene: Scene) -> Iterator[Row]:
    """Yield rows of what limits a view's accuracy: totals by number of karts, karts by size and by what hides them."""
    if not scene.karts:
        return
    number = min(MAX_KART_BIN, len(scene.karts))
    label = f"total of {number}{' or more' * (number == MAX_KART_BIN)} kart{'s' * (number > 1)}"
    yield label, float(logits["total"].argmax() == min(len(scene.karts), len(logits["total"]) - 1))
    for kart in scene.others:
        found = kart.name in KART_ID and float(logits["relation"][KART_ID[kart.name], 0]) > 0  # a probability of 1/2
        low = next(i for i, size in enumerate(SIZE_BINS_PX) if kart.min_side >= size)
        upper = f"to {SIZE_BINS_PX[low - 1] - 1}" if low else "or more"
        yield f"found, {SIZE_BINS_PX[low]} {upper} pixels", float(found)
        if covered_share(kart, scene) >= COVERED_SHARE:
            yield "found, half or more covered", float(found)


def covered_share(kart: Kart, scene: Scene) -> float:
    """Return the largest share of a kart's box that lies in another's."""
    x1, y1, x2, y2 = kart.box
    shares = [0.0]
    for u1, v1, u2, v2 in (other.box for other in scene.karts if other is not kart):
        shares.append(max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1)))
    return max(shares) / ((x2 - x1) * (y2 - y1))


def measure_views(predict: Predict, views: PretrainDataset) -> dict[str, list[Measured]]:
    """Measure all views: `types` has a row per question, `limits` one per view and kart."""
    found = {"types": [], "limits": []}
    for start in range(0, len(views), BATCH_SIZE):
        index = np.arange(start, min(start + BATCH_SIZE, len(views)))
        pixels, targets = views.get_batch(index)
        logits = {name: values.cpu() for name, values in predict(pixels).items()}
        for row, i in enumerate(index):
            one, target = {k: v[row] for k, v in logits.items()}, {k: targets[k][row] for k in IMAGE_TARGETS}
            for part, rows in (("types", accuracy_rows(one, target)), ("limits", limit_rows(one, views.scenes[i]))):
                item = views.moments[i], views.labels[i][1]
                found[part] += [(item[0], (item[1], number), *row) for number, row in enumerate(rows)]
    return found


def evaluate_views(predict: Predict, views: PretrainDataset) -> dict[str, tuple[Estimate, int]]:
    """Evaluate all views: group -> (`Estimate`, number of moments), first the question types and their mean."""
    result = {}
    for part, rows in measure_views(predict, views).items():
        estimates = estimate(rows)
        moments = {group: len({row[0] for row in rows if row[2] == group}) for group in estimates}
        if part == "limits":
            # totals, then karts by size, then those that are covered
            number = lambda group: int((re.findall(r"\d+", group) or [99])[0])
            estimates = {group: estimates[group] for group in sorted(moments, key=lambda g: (g[0] == "f", number(g)))}
            estimates.pop(MEAN, None)
        result |= {group: (one, moments[group]) for group, one in estimates.items()}
    return result


def estimate(rows: list[Measured]) -> dict[str, Estimate]:
    """Average rows by group, each moment counted once; see `bootstrap_by_moment`."""
    return bootstrap_by_moment(*zip(*rows, strict=True)) if rows else {}


def head_accuracy(predict: Predict, views: PretrainDataset) -> dict[str, float]:
    """Return accuracies and limits in percent, for a stage's curve."""
    return {group: round(100 * one.value, 2) for group, (one, _) in evaluate_views(predict, views).items()}


def format_report(result: dict[str, tuple[Estimate, int]]) -> list[str]:
    """Format the result of `evaluate_views` as lines: percent, 95 % interval, number of moments."""
    lines = [f"{'':32}{'%':>6}{'95 %':>14}{'moments':>9}"]
    for group, (one, moments) in result.items():
        value, low, high = (100 * number for number in one)
        lines.append(f"{group:32}{value:6.1f}{low:8.1f}-{high:<5.1f}{moments or '':>9}".rstrip())
    return lines


@torch.no_grad()
def evaluate_text(stage: TextStage, views: PretrainDataset, seed: int = 0) -> dict[str, float]:
    """Ask each view one question of each type in the course's words, and one in words that no training uses.

    Returns:
        the mean of the types' accuracies in percent, `course's words` and `other words`.
    """
    rng, counts = np.random.default_rng(seed), defaultdict(lambda: np.zeros(2))
    for start in range(0, len(views), BATCH_SIZE):
        index = np.arange(start, min(start + BATCH_SIZE, len(views)))
        pixels = views.get_batch(index)[0].to(stage.model.device)
        features = stage.model.connector(stage.model.vision_encoder(pixels).last_hidden_state)
        for words, rows in (("course's words", QUESTIONS), ("other words", HELD_OUT_QUESTIONS)):
            for _, kind, right in answer_questions(stage, features, [views.scenes[i] for i in index], rows, rng):
                counts[words, kind] += right, 1
    shares = defaultdict(list)
    for (words, _), (correct, total) in counts.items():
        shares[words].append(100 * correct / total)
    return {words: round(float(np.mean(values)), 2) for words, values in shares.items()}


def answer_questions(
    stage: TextStage, features: Tensor, scenes: list[Scene], rows: Sequence[Question], rng: np.random.Generator
) -> Iterator[tuple[int, str, bool]]:
    """Ask one question of each type about each scene; yield the scene's number, the type, and whether it is right.

    An answer is right if each of its tokens is the likeliest after those before it.

    Args:
        features: the scenes' image tokens, [b, num_image_tokens, d].
        rows: the questions to choose from.
    """
    asked = [_one_per_type(scene, rows, rng) for scene in scenes]
    batch = stage.pack([[(question, answer, 1.0) for _, question, answer in view] for view in asked])
    batch = {name: value.to(features.device) for name, value in batch.items()}
    states, table = stage.answer_states(features, batch), stage.model.language_model.embed_tokens.weight
    is_wrong = (states @ table.T).argmax(-1) != batch["labels"]
    is_end = (batch["labels"] == stage.vocabulary.row[stage.tokens.end]).long()
    wrong = set((is_end.cumsum(0) - is_end)[is_wrong].tolist())  # numbers of answers
    types = ((number, row.question_type) for number, view in enumerate(asked) for row, *_ in view)
    for answer, (number, kind) in enumerate(types):
        yield number, kind, answer not in wrong


def _one_per_type(scene: Scene, rows: Sequence[Question], rng: np.random.Generator) -> list[tuple]:
    by_type = defaultdict(list)
    for asked in generate_questions(scene, rows):
        if in_official_eval(asked[0].question_type, asked[2]):
            by_type[asked[0].question_type].append(asked)
    return [choices[rng.integers(len(choices))] for choices in by_type.values()]
