"""What a tower knows of views, by its heads, as the connector puts them together."""

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import nn

from homework.labels.scene import MIN_KART_SIZE_PX, VIEW_SIZE, Scene
from homework.models.tux_nano.connector import average_tta

from .annotated_scene import Seen
from .dataset import Frames
from .dense_heads import IMAGE_HEADS, accuracy, forward, recognised
from .targets import FOVEA_CELLS, IGNORE, KART_ID, KARTS, Grid

SIDES = (5, 8, 12, 18)  # pixels: where the classes of a kart's shorter side begin
EGO_SIDES = (18, 10)  # and where those of an ego kart's begin
# Shorter sides of karts that nearly count, or only just; the first that fits is a view's
NEARNESS = {
    "4 or 5 px": {MIN_KART_SIZE_PX - 1, MIN_KART_SIZE_PX},
    "3 or 6 px": {MIN_KART_SIZE_PX - 2, MIN_KART_SIZE_PX + 1},
    "none of these": set(),
}
CELLS = {"fovea_kart": FOVEA_CELLS, "kart": Grid(0, 0, *VIEW_SIZE, 8)}  # from the finest


@torch.no_grad()
def image_logits(stage: nn.Module, frames: Frames, batch: int = 100) -> Iterator[tuple[dict, dict]]:
    """The image heads' (logits, targets) by name for all views, `batch` at a time, by two looks as the connector's.

    Of the cells' heads the logits hold the number of the kart alone, since all of them would fill the memory where they
    are kept.
    """
    names = (*IMAGE_HEADS, "relation")
    for start in range(0, len(frames), batch):
        pixels, targets = frames.batch(np.arange(start, min(start + batch, len(frames))))
        logits, mirror = (forward(stage.tower, stage.heads, look)[0] for look in (pixels, pixels.flip(-1)))
        logits |= average_tta([recognised(look) for look in (logits, mirror)])
        named = {name: logits[name].argmax(-1).to(torch.int8) for name in CELLS}
        yield {name: logits[name] for name in names} | named, {name: targets[name] for name in names}


def stored_at(quality: int, views: np.ndarray) -> np.ndarray:
    """Views [n, 100, 150, 3] uint8 as they come back from JPEG files of a quality from 1 to 100."""
    result = np.empty_like(views)
    for number, view in enumerate(views):
        stream = io.BytesIO()
        Image.fromarray(view).save(stream, "JPEG", quality=quality)
        result[number] = np.asarray(Image.open(stream))
    return result


def evaluate_dense(answers: Iterable[tuple[dict, dict]]) -> dict[str, float]:
    """Accuracy in percent of the image heads on whole views, as the questions would be answered.

    Args:
        answers: see `image_logits`.
    """
    totals = {}
    for logits, targets in answers:
        for name, pair in accuracy(logits, targets).items():
            totals[name] = np.add(totals.get(name, (0, 0)), pair)
    return {f"accuracy_{name}": round(100 * float(right) / float(asked), 2) for name, (right, asked) in totals.items()}


def ego_by_kart(answers: Iterable[tuple[dict, dict]]) -> dict[str, tuple[int, int]]:
    """(named rightly, views) by ego kart.

    Args:
        answers: see `image_logits`.
    """
    result = {}
    for logits, targets in answers:
        named = logits["ego"].argmax(-1)
        for name, true in zip(named.tolist(), targets["ego"].tolist(), strict=True):
            if true != IGNORE:
                right, views = result.get(KARTS[true], (0, 0))
                result[KARTS[true]] = right + (name == true), views + 1
    return result


def ego_by_place(answers: Iterable[tuple[dict, dict]], frames: Frames) -> dict[str, tuple[int, int]]:
    """(named rightly, views) by what makes an ego kart hard to find.

    That is whether its moment was taken more than once (in the course's frames those are of karts at rest, seen from
    the front), its shorter side, and whether a larger kart is in the view.

    Args:
        answers: see `image_logits`.
        frames: of the same views.
    """
    result, remaining = {}, zip(frames.scenes, frames.times, strict=True)
    for logits, targets in answers:
        named, true = logits["ego"].argmax(-1).tolist(), targets["ego"].tolist()
        for name, kart, (scene, times) in zip(named, true, islice(remaining, len(true)), strict=True):
            if kart == IGNORE:
                continue
            size = next((f"{side}+ px" for side in EGO_SIDES if scene.ego.min_side >= side), f"under {EGO_SIDES[-1]}")
            larger = any(other.min_side > scene.ego.min_side for other in scene.others)
            place = f"{'taken again' if times > 1 else 'taken once'}, {size}{', a larger one there' if larger else ''}"
            right, views = result.get(place, (0, 0))
            result[place] = right + (name == kart), views + 1
    return dict(sorted(result.items()))


def by_nearness(answers: Iterable[tuple[dict, dict]], scenes: Sequence[Seen]) -> dict[str, dict[str, tuple[int, int]]]:
    """(right, views) of ego and total, by how few pixels decide whether a kart of the view counts.

    Args:
        answers: see `image_logits`.
        scenes: of the same views.
    """
    result, remaining = {name: dict.fromkeys(NEARNESS, (0, 0)) for name in ("ego", "total")}, iter(scenes)
    for logits, targets in answers:
        right = {name: logits[name].argmax(-1) == targets[name] for name in result}
        for number, scene in enumerate(islice(remaining, len(targets["ego"]))):
            sides = {kart.min_side for kart in scene.all_karts}
            place = next(name for name, those in NEARNESS.items() if not those or sides & those)
            for name, rows in result.items():
                if targets[name][number] != IGNORE:
                    rows[place] = rows[place][0] + int(right[name][number]), rows[place][1] + 1
    return result


def relation_by_karts(answers: Iterable[tuple[dict, dict]], scenes: Sequence[Scene]) -> dict[int, tuple[int, int]]:
    """(both halves right, relations) by how many karts the view has.

    Args:
        answers: see `image_logits`.
        scenes: of the same views.
    """
    result, remaining = {}, iter(scenes)
    for logits, targets in answers:
        there = targets["relation"][..., 0] == 1  # [b, karts]
        both = ((logits["relation"][..., 1:] > 0) == (targets["relation"][..., 1:] == 1)).all(-1) & there
        for scene, held, number in zip(islice(remaining, len(there)), both.sum(1), there.sum(1), strict=True):
            if number:
                right, asked = result.get(len(scene.karts), (0, 0))
                result[len(scene.karts)] = right + int(held), asked + int(number)
    return dict(sorted(result.items()))


def cells_by_size(answers: Iterable[tuple[dict, dict]], scenes: Sequence[Scene]) -> dict[str, tuple[int, int]]:
    """(named rightly, karts) by a kart's shorter side, by the finest cell that holds its centre.

    Args:
        answers: see `image_logits`.
        scenes: of the same views.
    """
    result, remaining = {f"{side}+ px": (0, 0) for side in SIDES}, iter(scenes)
    for logits, targets in answers:
        for number, scene in enumerate(islice(remaining, len(targets["ego"]))):
            for kart in scene.karts:
                # the grids in the order of CELLS, from the finest
                cells, at = next((name, at) for name, grid in CELLS.items() if (at := grid.cell_of(*kart.center)))
                size = f"{max(side for side in SIDES if side <= kart.min_side)}+ px"
                right, karts = result[size]
                named = int(logits[cells][(number, *at)])
                result[size] = right + (named == KART_ID.get(kart.name)), karts + 1
    return result
