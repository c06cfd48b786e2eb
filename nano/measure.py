"""What a tower knows of views, by its heads."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from homework.scene import VIEW_SIZE

from .dense import IMAGE_HEADS, accuracy, cell_logits, forward
from .frames import Frames
from .targets import FOVEA_CELLS, IGNORE, KART_ID, KARTS, Grid


@torch.no_grad()
def image_logits(stage: nn.Module, frames: Frames, batch: int = 100) -> Iterator[tuple[dict, dict]]:
    """The image heads' (logits, targets) by name for all views as they are, `batch` at a time."""
    names = (*IMAGE_HEADS, "relation")  # not the cells', which would fill the memory where all are kept
    for start in range(0, len(frames), batch):
        pixels, targets = frames.batch(np.arange(start, min(start + batch, len(frames))))
        logits, _ = forward(stage.tower, stage.heads, pixels)
        yield tuple({name: values[name] for name in names} for values in (logits, targets))


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


SIDES = (5, 8, 12, 18)  # pixels: where the classes of a kart's shorter side begin


@torch.no_grad()
def cells_by_size(stage: nn.Module, frames: Frames, batch: int = 100) -> dict[str, tuple[int, int]]:
    """(named rightly, karts) by a kart's shorter side, by the finest cell that holds its centre.

    Args:
        stage: tower and heads.
        frames: views as they are.
        batch: views at a time.
    """
    view, result = Grid(0, 0, *VIEW_SIZE, 8), {f"{side}+ px": (0, 0) for side in SIDES}
    for start in range(0, len(frames), batch):
        index = np.arange(start, min(start + batch, len(frames)))
        fine, in_fovea = cell_logits(stage.tower, stage.heads, frames.batch(index)[0])
        for number, i in enumerate(index):
            for kart in frames.scenes[i].karts:
                at, logits = FOVEA_CELLS.cell_of(*kart.center), in_fovea
                if at is None:
                    at, logits = view.cell_of(*kart.center), fine
                size = f"{max(side for side in SIDES if side <= kart.side)}+ px"
                right, karts = result[size]
                named = int(logits[(number, *at)].argmax())
                result[size] = right + (named == KART_ID.get(kart.name)), karts + 1
    return result
