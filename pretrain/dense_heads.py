"""Heads and losses of the dense stage; some heads become a part of the connector afterwards."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.connector import (
    ZERO_COUNT_LOGIT_BIAS,
    PredictionHeads,
    fuse_global_and_cell_logits,
    offset_zero_logit,
)
from homework.models.tux_nano.vision import VisionEncoder, split_tokens

from .config import ALL_PARTS, PartsConfig
from .targets import KARTS, MAX_COUNT, SIZE_THRESHOLDS_PX, TRACKS, UNKNOWN

IMAGE_HEADS = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": 4 * (MAX_COUNT + 1)}


class DenseHeads(nn.Module):
    """Linear heads on the encoder's feature maps (stride 8, and 4 in the fovea), spatial and register tokens."""

    def __init__(self, config: VisionConfig, parts: PartsConfig = ALL_PARTS):
        super().__init__()
        self.num_register_tokens, dim, self.parts = config.num_register_tokens, config.hidden_size, parts
        self.grid_map = nn.Conv2d(config.channels[-2], len(KARTS) + 1 + 1 + 4, 1)  # kart, is a centre, box
        self.foveal_map = nn.Conv2d(config.foveal_channels[-2], len(KARTS) + 1, 1)
        self.grid_token = nn.Linear(dim, len(KARTS) + 1 + 2)  # centres of karts and of the ego kart, left, front
        self.foveal_token = nn.Linear(dim, len(KARTS) + 1 + 2)
        # thresholds that a kart's width and height reach: they teach the encoder which karts are large enough
        self.foveal_map_size = nn.Conv2d(config.foveal_channels[-2], 2 * len(SIZE_THRESHOLDS_PX), 1)
        self.foveal_token_size = nn.Linear(dim, 2 * len(SIZE_THRESHOLDS_PX))
        outputs = sum(IMAGE_HEADS.values()) + 3 * len(KARTS)
        self.image = nn.Sequential(nn.Dropout(0.1), nn.Linear(max(1, config.num_register_tokens) * dim, outputs))
        for head in (self.grid_token, self.foveal_token):
            nn.init.constant_(head.bias, -4.0)  # most cells hold no kart

    def forward(self, grid_map: Tensor, foveal_map: Tensor | None, tokens: Tensor) -> dict[str, Tensor]:
        """Compute logits by name, shaped as in `targets.py`.

        Args:
            grid_map: [b, c, h8, w8], of the view at stride 8.
            foveal_map: [b, c, h4, w4], of the fovea at stride 4; None without the foveal branch.
            tokens: [b, s, d].
        """
        if foveal_map is None:
            registers, cells = tokens.tensor_split([self.num_register_tokens], dim=1)
        else:
            registers, cells, fovea = split_tokens(tokens, self.num_register_tokens)
        summary = registers.flatten(1) if self.num_register_tokens else tokens.mean(1)
        image = self.image(summary).split((*IMAGE_HEADS.values(), 3 * len(KARTS)), dim=1)
        logits = dict(zip((*IMAGE_HEADS, "relation"), image, strict=True))
        logits["count"] = logits["count"].unflatten(1, (4, MAX_COUNT + 1))
        logits["relation"] = logits["relation"].unflatten(1, (len(KARTS), 3))
        if not self.parts.cell_heads:
            return logits
        logits["token"], logits["side"] = self.grid_token(cells).split((len(KARTS) + 1, 2), dim=-1)
        fine = self.grid_map(grid_map).permute(0, 2, 3, 1)  # [b, h8, w8, karts + 6]
        logits["kart"], center, logits["box"] = fine.split((len(KARTS) + 1, 1, 4), dim=-1)
        logits["center"] = center[..., 0]
        if foveal_map is None:
            return logits
        logits["foveal_token"], logits["foveal_side"] = self.foveal_token(fovea).split((len(KARTS) + 1, 2), dim=-1)
        logits["foveal_kart"] = self.classify_fovea_cells(foveal_map)
        logits["foveal_map_size"] = self.foveal_map_size(foveal_map).permute(0, 2, 3, 1)
        logits["foveal_token_size"] = self.foveal_token_size(fovea)
        return logits

    def classify_fovea_cells(self, foveal_map: Tensor) -> Tensor:
        """Compute logits of the kart that covers each cell: [b, c, h4, w4] -> [b, h4, w4, karts + 1]."""
        return self.foveal_map(foveal_map).permute(0, 2, 3, 1)


def copy_heads_to_connector(prediction_heads: PredictionHeads, heads: DenseHeads) -> None:
    """Copy the pretraining heads into the connector."""
    prediction_heads.global_head.load_state_dict(heads.image[-1].state_dict())
    prediction_heads.grid_head.load_state_dict(heads.grid_token.state_dict())
    prediction_heads.foveal_head.load_state_dict(heads.foveal_token.state_dict())


def fuse_logits(logits: dict[str, Tensor], parts: PartsConfig = ALL_PARTS) -> dict[str, Tensor]:
    """Fuse the logits of image and cells as the connector does, but for the parts that are switched off."""
    image = {name: logits[name] for name in (*IMAGE_HEADS, "relation")}
    fused = image | {"count": offset_zero_logit(image["count"].log_softmax(-1), ZERO_COUNT_LOGIT_BIAS)}
    if parts.cell_heads and parts.fusion:
        cells = {
            name: torch.cat([logits[part + name] for part in ("", "foveal_") if part + name in logits], dim=1)
            for name in ("token", "side")
        }
        alone = fused
        fused = fuse_global_and_cell_logits(**image, kart=cells["token"], side=cells["side"])
        if not parts.poisson_binomial:
            fused |= {name: alone[name] for name in ("total", "count")}
    if not parts.zero_count_bias:
        fused["count"] = offset_zero_logit(fused["count"], -ZERO_COUNT_LOGIT_BIAS)
    return fused


def run_heads(encoder: VisionEncoder, heads: DenseHeads, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Encode pixels [b, 3, h, w], and return (logits by name, tokens [b, s, d])."""
    view, fovea = encoder.feature_maps(pixels)
    tokens = encoder.encode(view[-1], fovea[-1]) if fovea else encoder.encode_grid(view[-1])
    return heads(view[-2], fovea[-2] if fovea else None, tokens), tokens


def dense_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Compute one scalar loss per target, weighted so that each begins between about 1 and 3."""
    losses = {}
    for name in ("ego", "total", "track", "count"):
        losses[name] = F.cross_entropy(logits[name].flatten(0, -2), targets[name].flatten(), ignore_index=UNKNOWN)
    known = targets["relation"] != UNKNOWN
    present = targets["relation"].clamp(min=0).float()
    relation = F.binary_cross_entropy_with_logits(logits["relation"], present, reduction="none")
    losses["relation"] = (relation * known).sum() / len(relation)
    for part in ("", "foveal_"):
        if part + "kart" in logits:
            losses[part + "kart"] = cell_loss(logits[part + "kart"], targets[part + "kart"], targets[part + "weight"])
            losses[part + "token"] = token_loss(logits[part + "token"], targets[part + "token"])
            losses[part + "side"] = _masked_bce(logits[part + "side"], targets[part + "side"])
    for name in ("foveal_map_size", "foveal_token_size"):
        if name in logits:
            losses[name] = 2 * _masked_bce(logits[name], targets[name])
    if "center" in logits:
        center = targets["center"].float()
        pos_weight = center.new_tensor(3.0)
        losses["center"] = 20 * F.binary_cross_entropy_with_logits(logits["center"], center, pos_weight=pos_weight)
        box = (logits["box"] - targets["box"].float()).abs().sum(-1)
        losses["box"] = (box * center).sum() / center.sum().clamp(min=1)
    return losses


def cell_loss(logits: Tensor, kart: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted cross-entropy of each cell's kart, [b, h, w, karts + 1] against [b, h, w]."""
    cell = F.cross_entropy(logits.flatten(0, 2), kart.long().flatten(), ignore_index=UNKNOWN, reduction="none")
    return 2 * (cell * weight.float().flatten()).sum() / weight.float().sum()


def token_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum the binary cross-entropies of a view's cells, [b, cells, karts + 1] both, and average over the batch."""
    return F.binary_cross_entropy_with_logits(logits, target.float(), reduction="sum") / max(1, len(target))


def _masked_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Average the binary cross-entropy over the targets that are not `UNKNOWN`."""
    known = target != UNKNOWN
    each = F.binary_cross_entropy_with_logits(logits, target.clamp(min=0).float(), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


def match_relations(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compare relations [..., karts, 3]: which karts are present, and which of these have both sides predicted."""
    present = targets[..., 0] == 1
    correct = (logits[..., 1:] > 0) == (targets[..., 1:] == 1)
    return present, correct.all(-1) & present
