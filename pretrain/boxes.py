"""The vision encoder of shape `boxes`: a detector of karts, from whose boxes all else follows by the label rule.

As in CenterNet (arXiv:1904.07850), heat maps have peaks at the centres of karts, one map for any kart and one per kart,
with the box's size and the centre's offset beside. The maps have stride 4 and context from above: a feature pyramid
(arXiv:1612.03144). Each kart is at most once in a race, so peaks are told apart by their names.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.labels.scene import VIEW_SIZE, Scene
from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.connector import (
    MIN_COUNT_PROB,
    SIDES,
    PredictionHeads,
    poisson_binomial,
    side_probabilities,
)
from homework.models.tux_nano.vision import ModelOutput, conv, residual_stages, run_stages

from .targets import KART_ID, KARTS, MAX_COUNT, TRACKS, UNKNOWN, AnnotatedScene, Grid, image_targets

STRIDE = 4
PARTS = {"any": 1, "large": 1, "size": 2, "offset": 2, "name": len(KARTS)}  # channels of a cell
PEAK_SHARE = 0.09  # of a box's side: standard deviation of the peak at its centre (as TTFNet, arXiv:1909.00700)
MIN_PEAK_CELLS = 0.4  # the smallest one
NEAR_PEAK_POWER = 4  # a background cell on a peak's slope of height t counts (1 - t) to this power
INITIAL_LOGITS = {"any": -6.0, "name": -8.0}  # about two of 950 cells hold a kart's centre, of 18 names
NUM_DETECTIONS = 12  # per view
# Centres are multiples of half a pixel, and at equal ones a kart is neither left nor in front.
SIDE_THRESHOLD_PX, SIDE_SOFTNESS_PX = 0.25, 0.25
MIN_PROB = 1e-4


class BoxEncoder(nn.Module):
    """Encode an image as a token of `PARTS` per 4x4 pixels, row by row, and one for the track.

    Outside training mode, the image is encoded twice, as by `VisionEncoder`.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config, width = config, config.channels[-2]
        self.stages = residual_stages(3, config.channels, config.blocks, (2, 2, 2, 2), config.batch_norm)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in config.channels[1:])
        self.smooth = nn.ModuleList(conv(width, width, 1, config.batch_norm) for _ in config.channels[2:])
        self.head = nn.Conv2d(width, sum(PARTS.values()), 1)
        self.track = nn.Linear(config.channels[-1], len(TRACKS))

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode [b, 3, 100, w] as [b, cells + 1, sum of PARTS]."""
        _, *maps = run_stages(self.stages, pixel_values)
        laterals = [lateral(one) for lateral, one in zip(self.laterals, maps, strict=True)]
        x = laterals.pop()
        for lateral, smooth in zip(reversed(laterals), self.smooth, strict=True):
            x = F.relu(smooth(lateral + F.interpolate(x, lateral.shape[-2:], mode="nearest")))
        cells = self.head(x).flatten(2).transpose(1, 2)
        track = self.track(maps[-1].mean((2, 3)))
        return torch.cat([cells, F.pad(track, (0, cells.shape[-1] - track.shape[-1]))[:, None]], dim=1)

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """Encode [b, 3, h, w] as `last_hidden_state` [b, passes, cells + 1, d]: one pass in training mode, else two."""
        height, width = pixel_values.shape[-2:]
        if height != self.config.image_height:
            size = (self.config.image_height, round(width * self.config.image_height / height))
            pixel_values = F.interpolate(pixel_values.float(), size, mode="bilinear", antialias=True)
        passes = [pixel_values] if self.training else [pixel_values, pixel_values.flip(-1)]
        return ModelOutput(torch.stack([self.encode(one) for one in passes], dim=1))


def init_boxes(encoder: BoxEncoder) -> BoxEncoder:
    """Let all heat maps begin near 0; all other weights keep theirs."""
    start = 0
    for name, channels in PARTS.items():
        nn.init.constant_(encoder.head.bias[start : start + channels], INITIAL_LOGITS.get(name, 0.0))
        start += channels
    return encoder


def split_cells(tokens: Tensor) -> dict[str, Tensor]:
    """Split tokens [b, cells + 1, d] into `PARTS` [b, rows, columns, channels] and track [b, tracks]."""
    rows = -(-VIEW_SIZE[1] // STRIDE)
    cells = tokens[:, :-1].unflatten(1, (rows, -1)).split(tuple(PARTS.values()), dim=-1)
    return dict(zip(PARTS, cells, strict=True)) | {"track": tokens[:, -1, : len(TRACKS)]}


class BoxDecoder(PredictionHeads):
    """Predict what the connector reads from a `BoxEncoder`'s tokens, by the label rule; it has no weights."""

    def __init__(self):
        nn.Module.__init__(self)
        self.num_captions = len(KARTS) + MAX_COUNT + 1 + len(TRACKS) + len(SIDES) * len(KARTS)

    def forward_single(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return logits and places for the tokens [b, cells + 1, d] of one pass, as `PredictionHeads` does."""
        certainty, name, x, y = detect_karts(tokens.float())
        return apply_label_rule(certainty, name, x, y) | {"track": tokens[:, -1, : len(TRACKS)].float()}


def detect_karts(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the likeliest karts, the nearest to the centre first: certainty, name's index, x and y, [b, n] each.

    The certainty is that a kart is there and large enough for the label rule. x and y are its centre's, in pixels from
    the view's. No two have the same name: the more certain one takes it.
    """
    parts = split_cells(tokens)
    heat = parts["any"][..., 0]  # [b, rows, columns]
    is_peak = heat == F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]
    probability = torch.where(is_peak, heat.sigmoid() * parts["large"][..., 0].sigmoid(), 0)
    certainty, cell = probability.flatten(1).topk(NUM_DETECTIONS)
    columns = heat.shape[2]
    at = lambda values: values.flatten(1, 2).gather(1, cell[..., None].expand(-1, -1, values.shape[-1]))
    offset = at(parts["offset"])
    # a centre crop is seen as the middle of the view
    x = STRIDE * (cell % columns + offset[..., 0]) - min(STRIDE * columns, VIEW_SIZE[0]) / 2
    y = STRIDE * (cell // columns + offset[..., 1]) - VIEW_SIZE[1] / 2
    logits, names = at(parts["name"]), []
    for number in range(NUM_DETECTIONS):
        names.append(logits[:, number].argmax(-1))
        logits = logits.scatter(2, names[-1][:, None, None].expand(-1, NUM_DETECTIONS, 1), -math.inf)
    order = (x.square() + y.square()).argsort(dim=1)
    return tuple(values.gather(1, order) for values in (certainty, torch.stack(names, dim=1), x, y))


def apply_label_rule(certainty: Tensor, name: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Compute the logits that the label rule gives for uncertain karts, independent of each other.

    Args:
        certainty, name, x, y: see `detect_karts`, [b, n].

    Returns:
        ego, total, count, relation and place as of `PredictionHeads`.
    """
    b, n = name.shape
    # the ego kart is the nearest one that is there
    none_nearer = F.pad((1 - certainty).cumprod(1)[:, :-1], (1, 0), value=1.0)
    is_ego = certainty * none_nearer
    is_other = (certainty - is_ego).clamp(min=0)
    # the sides of each kart (row) of each possible ego kart (column)
    weights = is_ego[:, None] * (1 - torch.eye(n, device=name.device)) + MIN_PROB
    weights = weights / weights.sum(-1, keepdim=True)
    to_ego = torch.stack([at[:, None] - at[:, :, None] for at in (x, y)], dim=-1)  # [b, n, n, 2]
    sides = as_logits(
        (weights[..., None] * ((to_ego - SIDE_THRESHOLD_PX) / SIDE_SOFTNESS_PX).sigmoid()).sum(2)
    )  # [b, n, 2]: left, front
    on_side = is_other[..., None] * side_probabilities(sides)  # [b, n, SIDES]
    logs = lambda probabilities: poisson_binomial(probabilities, MAX_COUNT + 1).clamp(min=MIN_COUNT_PROB).log()
    by_name = lambda values, default: values.new_full((b, len(KARTS), values.shape[-1]), default).scatter(
        1, name[..., None].expand_as(values), values
    )
    present = by_name(as_logits(is_other)[..., None], -as_logits(torch.tensor(1 - MIN_PROB)).item())
    return {
        "ego": by_name(is_ego[..., None].clamp(min=MIN_PROB).log(), math.log(MIN_PROB))[..., 0],
        "total": logs(certainty),
        "count": logs(on_side.transpose(1, 2)),
        "relation": torch.cat([present, by_name(sides, 0.0)], dim=-1),
        "place": by_name(torch.stack([y, x], dim=-1) / (VIEW_SIZE[0] / 2), 0.0),
    }


def as_logits(probabilities: Tensor) -> Tensor:
    """Return the log-odds of probabilities, bounded."""
    return probabilities.clamp(MIN_PROB, 1 - MIN_PROB).logit()


def box_targets(scenes: Sequence[AnnotatedScene], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, Tensor]:
    """Build the targets of each cell for the image's columns from `left` to `left + width`.

    Karts that are too small for the label rule are targets too; `large` tells them apart.

    Returns:
        heat [n, h, w, 1 + karts]: 1 at the centres of karts, less around, for any kart and for each; is_center,
        large [n, h, w]; size, offset [n, h, w, 2]: (x, y), the size's log, the offset from the cell's centre in cells;
        track [n].
    """
    grid = Grid(left, 0, width, VIEW_SIZE[1], STRIDE)
    shape = len(scenes), *grid.shape
    heat, is_center = np.zeros((*shape, 1 + len(KARTS)), dtype=np.float32), np.zeros(shape, dtype=bool)
    large, size, offset = np.zeros(shape, dtype=np.float32), *np.zeros((2, *shape, 2), dtype=np.float32)
    rows, columns = (np.arange(n) * STRIDE for n in grid.shape)
    for i, scene in enumerate(scenes):
        # the largest last: of two centres in a cell the nearer kart's box counts
        for kart, (row, column) in sorted(grid.place_karts(scene.all_karts), key=lambda placed: placed[0].min_side):
            (x1, y1, x2, y2), (x, y) = kart.box, kart.center
            spread_x, spread_y = (max(MIN_PEAK_CELLS * STRIDE, PEAK_SHARE * side) for side in (x2 - x1, y2 - y1))
            slope_x = np.exp(-(((columns - column * STRIDE) / spread_x) ** 2) / 2)
            slope = np.exp(-(((rows - row * STRIDE) / spread_y) ** 2) / 2)[:, None] * slope_x
            for channel in (0, *([1 + KART_ID[kart.name]] if kart.name in KART_ID else [])):
                heat[i, ..., channel] = np.maximum(heat[i, ..., channel], slope)
            cell = i, row, column
            is_center[cell], large[cell], size[cell] = True, kart.is_large_enough, np.log((x2 - x1, y2 - y1))
            offset[cell] = (x - left) / STRIDE - column, y / STRIDE - row
    arrays = {"heat": heat, "is_center": is_center, "large": large, "size": size, "offset": offset}
    arrays["track"] = image_targets([Scene(scene.track, ()) for scene in scenes])["track"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def box_loss(tokens: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute one scalar loss per target, per kart and not per view.

    Without CenterNet's focusing on hard cells: the heat maps are read as probabilities.

    Args:
        tokens: [b, cells + 1, d].
        targets: see `box_targets`.
    """
    parts, heat, at = split_cells(tokens.float()), targets["heat"], targets["is_center"]
    num_karts = at.sum().clamp(min=1)
    is_peak = (heat == 1).float()
    weight = torch.where(is_peak == 1, 1.0, (1 - heat) ** NEAR_PEAK_POWER)
    logits = torch.cat([parts["any"], parts["name"]], dim=-1)
    each = weight * F.binary_cross_entropy_with_logits(logits, is_peak, reduction="none")
    losses = {"any": each[..., 0].sum() / num_karts, "name": each[..., 1:].sum() / num_karts}
    losses["large"] = F.binary_cross_entropy_with_logits(
        parts["large"][..., 0][at], targets["large"][at], reduction="sum"
    )
    losses["large"] = losses["large"] / num_karts
    for name in ("size", "offset"):
        losses[name] = (parts[name][at] - targets[name][at]).abs().sum() / num_karts
    is_known = targets["track"] != UNKNOWN
    track = F.cross_entropy(parts["track"], targets["track"], ignore_index=UNKNOWN, reduction="sum")
    return losses | {"track": track / is_known.sum().clamp(min=1)}
