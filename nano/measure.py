"""What a tower knows of views, by its heads."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import nn

from homework.scene import VIEW_SIZE, Scene

from .dense import IMAGE_HEADS, accuracy, forward
from .frames import Frames
from .targets import FOVEA_CELLS, IGNORE, KART_ID, KARTS, Grid

SIDES = (5, 8, 12, 18)  # pixels: where the classes of a kart's shorter side begin
CELLS = {"fovea_kart": FOVEA_CELLS, "kart": Grid(0, 0, *VIEW_SIZE, 8)}  # from the finest


@torch.no_grad()
def image_logits(stage: nn.Module, frames: Frames, batch: int = 100) -> Iterator[tuple[dict, dict]]:
    """The image heads' (logits, targets) by name for all views as they are, `batch` at a time.

    Of the cells' heads the logits hold the number of the kart alone, since all of them would fill the memory where they
    are kept.
    """
    names = (*IMAGE_HEADS, "relation")
    for start in range(0, len(frames), batch):
        pixels, targets = frames.batch(np.arange(start, min(start + batch, len(frames))))
        logits, _ = forward(stage.tower, stage.heads, pixels)
        named = {name: logits[name].argmax(-1).to(torch.int8) for name in CELLS}
        yield {name: logits[name] for name in names} | named, {name: targets[name] for name in names}


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
                size = f"{max(side for side in SIDES if side <= kart.side)}+ px"
                right, karts = result[size]
                named = int(logits[cells][(number, *at)])
                result[size] = right + (named == KART_ID.get(kart.name)), karts + 1
    return result
