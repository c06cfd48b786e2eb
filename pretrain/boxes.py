"""The vision encoder of shape `boxes`, a detector of karts, and its losses; `box_decoder` reads it.

As in CenterNet (arXiv:1904.07850), a heat map has peaks at the centres of karts; beside it each cell predicts the name,
the size and the exact centre of the kart there. The map has stride 4 and context from above: a feature pyramid
(arXiv:1612.03144). Around the horizon, where far karts are, convolutions at twice the resolution are added.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.labels.scene import VIEW_SIZE
from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.vision import ModelOutput, conv, residual_stages, run_stages

from .targets import KARTS, TRACKS, UNKNOWN

STRIDE = 4  # of a cell, in pixels of a view; the first cell's centre is the view's first pixel
GRID_ROWS = VIEW_SIZE[1] // STRIDE
HORIZON_TOP, HORIZON_HEIGHT = 32, 32  # rows of a view
# Channels of a cell. heat: logit of a kart's centre; large: logit of the kart being large enough for the label rule;
# size: log of width and height in pixels; offset: (x, y) of the centre from the cell's, in cells; name: logits.
PARTS = {"heat": 1, "large": 1, "size": 2, "offset": 2, "name": len(KARTS)}
NEAR_PEAK_POWER = 4  # a background cell on a peak's slope of height t counts (1 - t) to this power
INITIAL_HEAT_LOGIT = -6.0  # about two of 950 cells hold a kart's centre


class BoxEncoder(nn.Module):
    """Encode an image as a token of `PARTS` per 4x4 pixels, row by row, and one for the track.

    Outside training mode, the image is encoded twice, as by `VisionEncoder`.

    Args:
        config: sizes; the horizon's are the first ones of the foveal branch.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config, width = config, config.channels[-2]
        self.stages = residual_stages(3, config.channels, config.blocks, (2, 2, 2, 2), config.batch_norm)
        horizon = (config.foveal_channels[0], width), config.foveal_blocks[:2], (1, 2), config.batch_norm
        self.horizon_stages = residual_stages(12, *horizon)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in config.channels[1:])
        self.smooth = nn.ModuleList(conv(width, width, 1, config.batch_norm) for _ in config.channels[2:])
        self.head = nn.Conv2d(width, sum(PARTS.values()), 1)
        self.track_head = nn.Linear(config.channels[-1], len(TRACKS))

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode [b, 3, 100, w] as [b, cells + 1, sum of PARTS]."""
        _, *maps = run_stages(self.stages, pixel_values)
        laterals = [lateral(one) for lateral, one in zip(self.laterals, maps, strict=True)]
        laterals[0] = self.add_horizon(laterals[0], pixel_values)
        x = laterals.pop()
        for lateral, smooth in zip(reversed(laterals), self.smooth, strict=True):
            x = F.relu(smooth(lateral + F.interpolate(x, lateral.shape[-2:], mode="nearest")))
        cells = self.head(x).flatten(2).transpose(1, 2)
        track = self.track_head(maps[-1].mean((2, 3)))
        return torch.cat([cells, F.pad(track, (0, cells.shape[-1] - track.shape[-1]))[:, None]], dim=1)

    def add_horizon(self, x: Tensor, pixel_values: Tensor) -> Tensor:
        """Add the horizon's features to the rows of the finest map [b, width, h, w] that show it."""
        window = pixel_values[..., HORIZON_TOP : HORIZON_TOP + HORIZON_HEIGHT, :]
        # 2x2 pixels become 12 channels: half the size without a loss
        window = F.pixel_unshuffle(F.pad(window, (0, window.shape[-1] % 2)), 2)
        features, first = run_stages(self.horizon_stages, window)[-1], HORIZON_TOP // STRIDE
        return x + F.pad(features, (0, 0, first, x.shape[-2] - first - features.shape[-2]))

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """Encode [b, 3, h, w] as `last_hidden_state` [b, passes, cells + 1, d]: one pass in training mode, else two."""
        height, width = pixel_values.shape[-2:]
        if height != self.config.image_height:
            size = (self.config.image_height, round(width * self.config.image_height / height))
            pixel_values = F.interpolate(pixel_values.float(), size, mode="bilinear", antialias=True)
        passes = [pixel_values] if self.training else [pixel_values, pixel_values.flip(-1)]
        return ModelOutput(torch.stack([self.encode(one) for one in passes], dim=1))


def init_boxes(encoder: BoxEncoder) -> BoxEncoder:
    """Let the heat map begin near 0; all other weights keep theirs."""
    nn.init.constant_(encoder.head.bias[: PARTS["heat"]], INITIAL_HEAT_LOGIT)
    return encoder


def split_cells(tokens: Tensor) -> dict[str, Tensor]:
    """Split tokens [b, cells + 1, d] into `PARTS` [b, rows, columns, channels] and track [b, tracks]."""
    cells = tokens[:, :-1].unflatten(1, (GRID_ROWS, -1)).split(tuple(PARTS.values()), dim=-1)
    return dict(zip(PARTS, cells, strict=True)) | {"track": tokens[:, -1, : len(TRACKS)]}


def box_loss(tokens: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute one scalar loss per target, per kart and not per view.

    Without CenterNet's focusing on hard cells: the heat map is read as probabilities.

    Args:
        tokens: of one pass, [b, cells + 1, d].
        targets: see `box_targets`.
    """
    parts, heat, at = split_cells(tokens.float()), targets["heat"], targets["is_center"]
    num_karts = at.sum().clamp(min=1)
    is_peak = (heat == 1).float()
    weight = torch.where(is_peak == 1, 1.0, (1 - heat) ** NEAR_PEAK_POWER)
    each = F.binary_cross_entropy_with_logits(parts["heat"][..., 0], is_peak, reduction="none")
    large = F.binary_cross_entropy_with_logits(parts["large"][..., 0][at], targets["large"][at], reduction="sum")
    name = F.cross_entropy(
        parts["name"].flatten(0, 2), targets["name"].flatten(), ignore_index=UNKNOWN, reduction="none"
    )
    losses = {
        "heat": (weight * each).sum() / num_karts,
        "large": large / num_karts,
        "name": (name * targets["name_weight"].flatten()).sum() / num_karts,
    }
    for part in ("size", "offset"):
        losses[part] = (parts[part][at] - targets[part][at]).abs().sum() / num_karts
    num_known = (targets["track"] != UNKNOWN).sum().clamp(min=1)
    track = F.cross_entropy(parts["track"], targets["track"], ignore_index=UNKNOWN, reduction="sum")
    return losses | {"track": track / num_known}
