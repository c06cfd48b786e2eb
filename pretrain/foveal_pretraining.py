"""The stage that teaches the fovea to name small karts, before the tower learns all the rest."""

import torch
from torch import Tensor, nn

from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig, TuxNanoVisionModel

from .dense_heads import DenseHeads, cell_loss, token_loss
from .targets import KARTS


class FoveaStage(nn.Module):
    """The tower and its heads, of which the fovea's convolutions are trained alone.

    So a step costs a third of one of the dense stage, and its windows are full of karts: far ones are few in views.
    """

    def __init__(self, config: TuxNanoVisionConfig):
        super().__init__()
        self.tower = TuxNanoVisionModel(config).to(memory_format=torch.channels_last).requires_grad_(False)
        self.heads = DenseHeads(config).requires_grad_(False)
        self.last = nn.Linear(config.fovea_channels[-1], len(KARTS) + 1)  # teaches the last map, and is thrown away
        nn.init.constant_(self.last.bias, -4.0)
        self.tower.fovea.requires_grad_(True)
        self.heads.fovea_fine.requires_grad_(True)

    def losses(self, windows: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """One scalar a target: windows [b, 3, h, w] of the fovea's size against those of `Frames.windows`."""
        maps = self.tower.fovea_maps(windows)
        cells = self.heads.fovea_karts(maps[-2])
        tokens = self.last(maps[-1].flatten(2).transpose(1, 2))  # [b, h * w / 64, karts + 1]
        return {
            "kart": cell_loss(cells, targets["kart"], targets["weight"]),
            "token": token_loss(tokens, targets["token"]),
        }
