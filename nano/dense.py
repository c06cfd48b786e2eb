"""Heads and loss of the dense stage: they teach the tower, and are thrown away afterwards."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.nano_model import TuxNanoVisionModel

from .targets import IGNORE, KARTS, MAX_COUNT, NONE, TRACKS

IMAGE_HEADS = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": 4 * (MAX_COUNT + 1)}


class DenseHeads(nn.Module):
    """Linear heads on the tower's three levels: stride 8, tokens, summary."""

    def __init__(self, fine_channels: int, dim: int, num_summary_tokens: int):
        super().__init__()
        self.num_summary_tokens = num_summary_tokens
        self.fine = nn.Conv2d(fine_channels, len(KARTS) + 1 + 1 + 4, 1)  # which kart, is a centre, box
        self.token = nn.Linear(dim, len(KARTS) + 1 + 2)  # which karts' centres, the ego kart's, left and in front
        outputs = sum(IMAGE_HEADS.values()) + 3 * len(KARTS)
        self.image = nn.Sequential(nn.Dropout(0.1), nn.Linear(num_summary_tokens * dim, outputs))
        nn.init.constant_(self.token.bias, -4.0)  # most cells hold no kart

    def forward(self, fine_map: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Maps [b, c, h8, w8] and tokens [b, s, d] -> logits by name, shaped as in `targets.py`."""
        fine = self.fine(fine_map).permute(0, 2, 3, 1)  # [b, h8, w8, karts + 6]
        kart, center, box = fine.split((len(KARTS) + 1, 1, 4), dim=-1)
        summary, cells = tokens[:, : self.num_summary_tokens], tokens[:, self.num_summary_tokens :]
        image = self.image(summary.flatten(1)).split((*IMAGE_HEADS.values(), 3 * len(KARTS)), dim=1)
        logits = dict(zip((*IMAGE_HEADS, "relation"), image, strict=True))
        logits["count"] = logits["count"].unflatten(1, (4, MAX_COUNT + 1))
        logits["relation"] = logits["relation"].unflatten(1, (len(KARTS), 3))
        token, side = self.token(cells).split((len(KARTS) + 1, 2), dim=-1)
        return logits | {"kart": kart, "center": center[..., 0], "box": box, "token": token, "side": side}


def forward(tower: TuxNanoVisionModel, heads: DenseHeads, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Pixels [b, 3, h, w] -> (logits by name, tokens [b, s, d])."""
    maps = tower.feature_maps(pixels)
    tokens = tower.encode(maps[-1])
    return heads(maps[-2], tokens), tokens


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
    # a cell of a kart weighs as much as 5 of the background
    kart = targets["kart"].long()
    weight = torch.where(kart == NONE, 1.0, 5.0)
    cell = F.cross_entropy(logits["kart"].flatten(0, 2), kart.flatten(), ignore_index=IGNORE, reduction="none")
    losses["kart"] = 2 * (cell * weight.flatten()).sum() / weight.sum()
    center = targets["center"].float()
    losses["center"] = 20 * F.binary_cross_entropy_with_logits(
        logits["center"], center, pos_weight=torch.tensor(3.0, device=center.device)
    )
    box = (logits["box"] - targets["box"].float()).abs().sum(-1)
    losses["box"] = (box * center).sum() / center.sum().clamp(min=1)
    token = F.binary_cross_entropy_with_logits(logits["token"], targets["token"].float(), reduction="none")
    losses["token"] = token.sum() / max(1, len(token))
    known = targets["side"] != IGNORE
    side = F.binary_cross_entropy_with_logits(logits["side"], targets["side"].clamp(min=0).float(), reduction="none")
    losses["side"] = (side * known).sum() / known.sum().clamp(min=1)
    return losses


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
