"""Evaluate the vision encoder by its heads, fused as in the connector, without the text model."""

from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from homework.labels.scene import VIEW_SIZE
from homework.models.tux_nano.connector import average_tta

from .dataset import PretrainDataset
from .dense_heads import IMAGE_HEADS, count_correct, fuse_logits, match_relations
from .targets import FOVEA_GRID, KART_ID, UNKNOWN, AnnotatedScene, Grid

Predictions = Sequence[tuple[dict, dict]]  # (logits, targets) by name, of one batch after another
Counts = dict[Hashable, tuple[int, int]]  # (correct, total) by class

KART_SIZE_BINS_PX = (18, 12, 8, 5)  # lower bounds
EGO_SIZE_BINS_PX = (18, 10)
CELL_GRIDS = {"foveal_kart": FOVEA_GRID, "kart": Grid(0, 0, *VIEW_SIZE, 8)}  # from the finest


@torch.no_grad()
def predict_views(stage: nn.Module, dataset: PretrainDataset, batch_size: int = 100) -> Iterator[tuple[dict, dict]]:
    """Yield (logits, targets) of the image heads by name for all views, with flip TTA as in the connector.

    Of the cell heads only the index of the likeliest kart is kept: all their logits would not fit in memory.
    """
    names = (*IMAGE_HEADS, "relation")
    for start in range(0, len(dataset), batch_size):
        pixels, targets = dataset.get_batch(np.arange(start, min(start + batch_size, len(dataset))))
        logits, flipped = (stage(images)[0] for images in (pixels, pixels.flip(-1)))
        logits |= average_tta([fuse_logits(logits), fuse_logits(flipped)])
        cells = {name: logits[name].argmax(-1).to(torch.int8) for name in CELL_GRIDS}
        yield {name: logits[name] for name in names} | cells, {name: targets[name] for name in names}


def head_accuracy(predictions: Iterable[tuple[dict, dict]]) -> dict[str, float]:
    """Compute the accuracy of the image heads on whole views, in percent, as the official benchmark asks for it."""
    totals = {}
    for logits, targets in predictions:
        for name, counts in count_correct(logits, targets).items():
            totals[name] = np.add(totals.get(name, (0, 0)), counts)
    return {f"accuracy_{name}": round(100 * float(correct) / float(n), 2) for name, (correct, n) in totals.items()}


def ego_accuracy_by_difficulty(predictions: Predictions, dataset: PretrainDataset) -> Counts:
    """Count correct ego karts by duplicate or unique frame, size, and whether a larger kart is in the view.

    Duplicates in the course's frames show karts at rest, from the front.
    """

    def rows() -> Iterator[tuple[str, bool]]:
        for logits, targets, scene, copies in _each_view(predictions, dataset.scenes, dataset.num_duplicates):
            if targets["ego"] != UNKNOWN:
                frame = "duplicate frame" if copies > 1 else "unique frame"
                size = next((f"{size}+ px" for size in EGO_SIZE_BINS_PX if scene.ego.min_side >= size), "smaller")
                larger = any(other.min_side > scene.ego.min_side for other in scene.others)
                label = f"{frame}, {size}{', with a larger kart' if larger else ''}"
                yield label, logits["ego"].argmax() == targets["ego"]

    return _count(rows())


def relation_accuracy_by_kart_count(predictions: Predictions, scenes: Sequence[AnnotatedScene]) -> Counts:
    """Count relations of which both halves are correct, by the number of karts in the view."""
    views = (
        (len(scene.karts), *match_relations(logits["relation"], targets["relation"]))
        for logits, targets, scene in _each_view(predictions, scenes)
    )
    return _count((n, hit) for n, present, correct in views for hit in correct[present])


def kart_accuracy_by_size(predictions: Predictions, scenes: Sequence[AnnotatedScene]) -> Counts:
    """Count karts that the finest cell at their centre names correctly, by the kart's size."""

    def rows() -> Iterator[tuple[str, bool]]:
        for logits, _, scene in _each_view(predictions, scenes):
            for kart in scene.karts:
                # a kart outside of the fovea has no cell in the first grid
                cells = ((name, grid.find_cell(*kart.center)) for name, grid in CELL_GRIDS.items())
                name, cell = next((name, cell) for name, cell in cells if cell)
                size = next(size for size in KART_SIZE_BINS_PX if kart.min_side >= size)
                yield f"{size}+ px", int(logits[name][cell]) == KART_ID.get(kart.name)

    return _count(rows(), [f"{size}+ px" for size in reversed(KART_SIZE_BINS_PX)])


def format_report(predictions: Predictions, dataset: PretrainDataset) -> list[str]:
    """Format all accuracies of a split as lines."""
    lines = [f"{name.removeprefix('accuracy_'):16}{value:6.1f}" for name, value in head_accuracy(predictions).items()]
    sections = {
        "karts named by the cells at their centres, by size": kart_accuracy_by_size(predictions, dataset.scenes),
        "ego by difficulty": ego_accuracy_by_difficulty(predictions, dataset),
        "relation by number of karts": relation_accuracy_by_kart_count(predictions, dataset.scenes),
    }
    for title, counts in sections.items():
        lines.append(f"{title}:")
        lines += [f"{label:45}{100 * hits / max(1, n):6.1f} % of {n:,}" for label, (hits, n) in counts.items()]
    return lines


def _each_view(predictions: Predictions, *columns: Sequence) -> Iterator[tuple]:
    """Yield the logits and targets of each view, and its value in each column."""
    rows = zip(*columns, strict=True)
    for logits, targets in predictions:
        for i in range(len(targets["ego"])):
            yield *({name: values[i] for name, values in part.items()} for part in (logits, targets)), *next(rows)


def _count(rows: Iterable[tuple[Hashable, bool]], labels: Iterable[Hashable] = ()) -> Counts:
    """Count (correct, total) of rows (class, correct) by class, in the order of `labels`, or else sorted."""
    counts = dict.fromkeys(labels, (0, 0))
    for label, correct in rows:
        hits, total = counts.get(label, (0, 0))
        counts[label] = hits + int(correct), total + 1
    return counts if labels else dict(sorted(counts.items()))
