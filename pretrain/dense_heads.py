"""Heads and loss of the dense stage: they teach the tower, and some become a part of the connector afterwards."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.models.tux_nano.connector import PredictionHeads, fuse_global_and_cell_logits
from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig, TuxNanoVisionModel
from homework.models.tux_nano.vision import split_tokens

from .targets import IGNORE, KARTS, MAX_COUNT, SIZES, TRACKS

IMAGE_HEADS = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": 4 * (MAX_COUNT + 1)}


class DenseHeads(nn.Module):
    """Linear heads on the tower's levels: stride 8, and 4 in the fovea; tokens of both; summary."""

    def __init__(self, config: TuxNanoVisionConfig):
        super().__init__()
        self.num_summary_tokens, dim = config.num_summary_tokens, config.hidden_size
        self.fine = nn.Conv2d(config.channels[-2], len(KARTS) + 1 + 1 + 4, 1)  # which kart, is a centre, box
        self.fovea_fine = nn.Conv2d(config.fovea_channels[-2], len(KARTS) + 1, 1)
        self.token = nn.Linear(dim, len(KARTS) + 1 + 2)  # which karts' centres, the ego kart's, left and in front
        self.fovea_token = nn.Linear(dim, len(KARTS) + 1 + 2)
        # which sizes a kart's width and height reach: they teach the tower which karts count
        self.fovea_size = nn.Conv2d(config.fovea_channels[-2], 2 * len(SIZES), 1)
        self.fovea_token_size = nn.Linear(dim, 2 * len(SIZES))
        outputs = sum(IMAGE_HEADS.values()) + 3 * len(KARTS)
        self.image = nn.Sequential(nn.Dropout(0.1), nn.Linear(config.num_summary_tokens * dim, outputs))
        for head in (self.token, self.fovea_token):
            nn.init.constant_(head.bias, -4.0)  # most cells hold no kart

    def forward(self, fine_map: Tensor, fovea_map: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Maps [b, c, h8, w8] of the view and [b, c, h4, w4] of the fovea, tokens [b, s, d] -> logits by name.

        They are shaped as in `targets.py`.
        """
        fine = self.fine(fine_map).permute(0, 2, 3, 1)  # [b, h8, w8, karts + 6]
        kart, center, box = fine.split((len(KARTS) + 1, 1, 4), dim=-1)
        summary, cells, fovea = split_tokens(tokens, self.num_summary_tokens)
        image = self.image(summary.flatten(1)).split((*IMAGE_HEADS.values(), 3 * len(KARTS)), dim=1)
        logits = dict(zip((*IMAGE_HEADS, "relation"), image, strict=True))
        logits["count"] = logits["count"].unflatten(1, (4, MAX_COUNT + 1))
        logits["relation"] = logits["relation"].unflatten(1, (len(KARTS), 3))
        logits["token"], logits["side"] = self.token(cells).split((len(KARTS) + 1, 2), dim=-1)
        logits["fovea_token"], logits["fovea_side"] = self.fovea_token(fovea).split((len(KARTS) + 1, 2), dim=-1)
        logits["fovea_kart"] = self.fovea_karts(fovea_map)
        logits["fovea_size"] = self.fovea_size(fovea_map).permute(0, 2, 3, 1)
        logits["fovea_token_size"] = self.fovea_token_size(fovea)
        return logits | {"kart": kart, "center": center[..., 0], "box": box}

    def fovea_karts(self, fovea_map: Tensor) -> Tensor:
        """The fovea's map of stride 4 [b, c, h4, w4] -> which kart covers each cell [b, h4, w4, karts + 1]."""
        return self.fovea_fine(fovea_map).permute(0, 2, 3, 1)


def recognise_as(recogniser: PredictionHeads, heads: DenseHeads) -> None:
    """Let a recogniser tell what the heads do."""
    recogniser.summary_head.load_state_dict(heads.image[-1].state_dict())
    recogniser.cell_head.load_state_dict(heads.token.state_dict())
    recogniser.fovea_head.load_state_dict(heads.fovea_token.state_dict())


def recognised(logits: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image heads' logits as the connector puts them together with those of the cells."""
    of_summary = {name: logits[name] for name in (*IMAGE_HEADS, "relation")}
    cells = {
        name: torch.cat([logits[head], logits[f"fovea_{head}"]], dim=1)
        for name, head in (("kart", "token"), ("side", "side"))
    }
    return fuse_global_and_cell_logits(**of_summary, **cells)


def forward(tower: TuxNanoVisionModel, heads: DenseHeads, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Pixels [b, 3, h, w] -> (logits by name, tokens [b, s, d])."""
    view, fovea = tower.feature_maps(pixels)
    tokens = tower.encode(view[-1], fovea[-1])
    return heads(view[-2], fovea[-2], tokens), tokens


def dense_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """One scalar a target. Weights are chosen so that each part starts near 1 to 3."""
    losses = {}
    for name in ("ego", "total", "track", "count"):
        losses[name] = F.cross_entropy(logits[name].flatten(0, -2), targets[name].flatten(), ignore_index=IGNORE)
    # which karts are there, and, of those, on which side
    known = targets["relation"] != IGNORE
    relation = F.binary_cross_entropy_with_logits(
        logits["relation"], targets["relation"].clamp(min=0).float(), reduction="none"
    )
    losses["relation"] = (relation * known).sum() / len(relation)
    for part in ("", "fovea_"):
        losses[part + "kart"] = cell_loss(logits[part + "kart"], targets[part + "kart"], targets[part + "weight"])
        losses[part + "token"] = token_loss(logits[part + "token"], targets[part + "token"])
        losses[part + "side"] = _known(logits[part + "side"], targets[part + "side"])
    for name in ("fovea_size", "fovea_token_size"):
        losses[name] = 2 * _known(logits[name], targets[name])
    center = targets["center"].float()
    losses["center"] = 20 * F.binary_cross_entropy_with_logits(
        logits["center"], center, pos_weight=torch.tensor(3.0, device=center.device)
    )
    box = (logits["box"] - targets["box"].float()).abs().sum(-1)
    losses["box"] = (box * center).sum() / center.sum().clamp(min=1)
    return losses


def cell_loss(logits: Tensor, kart: Tensor, weight: Tensor) -> Tensor:
    """Which kart covers each cell: [b, h, w, karts + 1] against kart and weight [b, h, w] of `targets.kart_maps`."""
    cell = F.cross_entropy(logits.flatten(0, 2), kart.long().flatten(), ignore_index=IGNORE, reduction="none")
    return 2 * (cell * weight.float().flatten()).sum() / weight.float().sum()


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Whose centres lie in each cell, [b, cells, karts + 1] both: the sum of a view's binary cross entropies."""
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum") / max(1, len(target))


def _known(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy: its mean where something is known."""
    known = target != IGNORE
    each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


@torch.no_grad()
def accuracy(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """(right, asked) of the image heads, read as the questions read them."""
    result = {}
    for name in ("ego", "total", "track", "count"):
        known = targets[name] != IGNORE
        # a count of 0 is not asked
        known &= targets[name] > 0 if name == "count" else known
        right = (logits[name].argmax(-1) == targets[name]) & known
        result[name] = int(right.sum()), int(known.sum())
    there = targets["relation"][..., 0] == 1
    side = (logits["relation"][..., 1:] > 0) == (targets["relation"][..., 1:] == 1)
    result["relation"] = int((side.all(-1) & there).sum()), int(there.sum())
    return result
