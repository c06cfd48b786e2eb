"""Decode the cells of a `BoxEncoder`: karts, and by the label rule the ego kart, counts and sides."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.labels.scene import VIEW_SIZE
from homework.models.tux_nano.connector import (
    MIN_COUNT_PROB,
    MIN_EVIDENCE_PROB,
    SIDES,
    PredictionHeads,
    offset_zero_logit,
    poisson_binomial,
)

from .boxes import STRIDE, split_cells
from .targets import KARTS, MAX_COUNT, TRACKS

NUM_DETECTIONS = 12  # per image
# Centres are multiples of half a pixel, and at equal ones a kart is neither left nor in front. The standard logistic
# distribution of a predicted difference has this scale.
SIDE_THRESHOLD_PX, SIDE_SCALE_PX = 0.25, 0.25
MIN_PROB = 1e-4
# Offset of the logit of a side's count of 0, as ZERO_COUNT_LOGIT_BIAS of the connector: of the counts of held-out
# moments, 79 % of those above 0 are right with it, and 77 % of those of 0.
ZERO_COUNT_BIAS = -2.0


class Detections(NamedTuple):
    """The likeliest karts of each image, the nearest to its centre first.

    Args:
        certainty: probability that a kart is there and large enough for the label rule, [b, n].
        names: probability of each name, [b, n, karts].
        center: (y, x) in pixels from the image's centre, [b, n, 2].
    """

    certainty: Tensor
    names: Tensor
    center: Tensor


def detect_karts(cells: dict[str, Tensor]) -> Detections:
    """Find the likeliest karts among cells, see `split_cells`.

    A cell is a peak unless one of its eight neighbours is more certain of a kart of the same name: centres of far karts
    often lie in neighbouring cells (15 % of those of 5 to 7 pixels). If a centre's cell is uncertain, neighbours share
    the probability of one kart, so a peak has the sum of theirs: on held-out moments 2 points more are right.
    """
    heat, columns = cells["heat"][..., 0].sigmoid(), cells["heat"].shape[2]
    of_name = F.one_hot(cells["name"].argmax(-1), cells["name"].shape[-1]) * heat[..., None]
    of_name = of_name.permute(0, 3, 1, 2)  # [b, karts, rows, columns]
    is_peak = (of_name == F.max_pool2d(of_name, 3, 1, 1)) & (of_name > 0)
    around = 9 * F.avg_pool2d(of_name, 3, 1, 1)  # the sum of each cell and its eight neighbours
    certainty = (is_peak * around).sum(1).clamp(max=1) * cells["large"][..., 0].sigmoid()
    certainty, cell = certainty.flatten(1).topk(NUM_DETECTIONS)
    at = lambda values: values.flatten(1, 2).gather(1, cell[..., None].expand(-1, -1, values.shape[-1]))
    offset = at(cells["offset"])
    # a centre crop is seen as the middle of the view
    x = STRIDE * (cell % columns + offset[..., 0]) - min(STRIDE * columns, VIEW_SIZE[0]) / 2
    y = STRIDE * (cell // columns + offset[..., 1]) - VIEW_SIZE[1] / 2
    names = at(cells["name"]).softmax(-1)
    order = (x.square() + y.square()).argsort(dim=1)
    sort = lambda values: values.gather(1, order[..., None].expand_as(values))
    return Detections(certainty.gather(1, order), sort(names), sort(torch.stack([y, x], dim=-1)))


def apply_label_rule(karts: Detections, num_counts: int) -> dict[str, Tensor]:
    """Compute what the label rule gives for uncertain karts, independent of each other.

    Returns:
        ego [b, karts], total [b, counts], count [b, SIDES, counts]: log probabilities;
        relation [b, karts, 3]: logits of a kart being present beside the ego kart, left of it, in front of it;
        place [b, karts, 2]: (y, x) from the image's centre in halves of a view's width.
    """
    certainty, names, center = karts
    n = names.shape[1]
    # the ego kart is the nearest one that is there
    none_nearer = F.pad((1 - certainty).cumprod(1)[:, :-1], (1, 0), value=1.0)
    is_ego = certainty * none_nearer
    is_other = (certainty - is_ego).clamp(min=0)
    # the sides of each kart (row) of each possible ego kart (column)
    weights = (is_ego[:, None] + MIN_PROB) * (1 - torch.eye(n, device=names.device))
    weights = weights / weights.sum(-1, keepdim=True)
    to_ego = center[:, None].flip(-1) - center[:, :, None].flip(-1)  # [b, n, n, 2]: x, y
    sides = weights[..., None] * ((to_ego - SIDE_THRESHOLD_PX) / SIDE_SCALE_PX).sigmoid()
    sides = sides.sum(2)  # [b, n, 2]: left, front
    on_side = is_other[..., None] * torch.stack([sides, 1 - sides], dim=-1).flatten(2)  # [b, n, SIDES]
    others = names * is_other[..., None]  # [b, n, karts]
    present = 1 - (1 - others).prod(1)
    left_front = average_by_name(others, sides - 0.5) + 0.5
    place = average_by_name(names * certainty[..., None], center)
    return {
        "ego": (names * is_ego[..., None]).sum(1).clamp(min=MIN_PROB).log(),
        "total": log_count_probabilities(certainty, num_counts),
        "count": log_count_probabilities(on_side.transpose(1, 2), num_counts),
        "relation": as_logits(torch.cat([present[..., None], left_front], dim=-1)),
        "place": place / (VIEW_SIZE[0] / 2),
    }


def average_by_name(weights: Tensor, values: Tensor) -> Tensor:
    """Average detections' values [b, n, d] by the weights [b, n, karts] of each kart: [b, karts, d]."""
    return (weights / (weights.sum(1, keepdim=True) + MIN_EVIDENCE_PROB)).transpose(1, 2) @ values


def as_logits(probabilities: Tensor) -> Tensor:
    """Return the log-odds of probabilities, bounded."""
    return probabilities.clamp(MIN_PROB, 1 - MIN_PROB).logit()


def log_count_probabilities(probabilities: Tensor, num_counts: int) -> Tensor:
    """Return the log probability of each number of independent events, bounded: [..., events] -> [..., num_counts]."""
    return poisson_binomial(probabilities, num_counts).clamp(min=MIN_COUNT_PROB).log()


class BoxDecoder(PredictionHeads):
    """Predict what the connector reads from a `BoxEncoder`'s tokens, by the label rule."""

    def __init__(self):
        nn.Module.__init__(self)
        self.num_captions = len(KARTS) + MAX_COUNT + 1 + len(TRACKS) + len(SIDES) * len(KARTS)

    def forward_single(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return logits and places for the tokens [b, cells + 1, d] of one pass, as `PredictionHeads` does."""
        cells = split_cells(tokens.float())
        logits = apply_label_rule(detect_karts(cells), MAX_COUNT + 1)
        return logits | {"track": cells["track"], "count": offset_zero_logit(logits["count"], ZERO_COUNT_BIAS)}
