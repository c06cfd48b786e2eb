"""First stage: train the foveal branch to name small karts, before the whole encoder is trained."""

from torch import Tensor, nn

from homework.models.tux_nano.config import VisionConfig

from .checkpoints import VisionStage
from .dense_heads import cell_loss, token_loss
from .targets import KARTS


class FoveaStage(VisionStage):
    """Vision encoder and heads, of which only the foveal convolutions are trained.

    A step costs a third of one of the dense stage, and its windows are full of far karts, which views have few of.
    """

    def __init__(self, config: VisionConfig):
        super().__init__(config)
        self.requires_grad_(False)
        self.last = nn.Linear(config.foveal_channels[-1], len(KARTS) + 1)  # head of the last map, discarded afterwards
        nn.init.constant_(self.last.bias, -4.0)
        self.vision_encoder.foveal_stages.requires_grad_(True)
        self.heads.foveal_map.requires_grad_(True)

    def losses(self, windows: Tensor, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute one scalar loss per target, for windows [b, 3, h, w] of `PretrainDataset.sample_windows`."""
        maps = self.vision_encoder.foveal_maps(windows)
        cells = self.heads.classify_fovea_cells(maps[-2])
        tokens = self.last(maps[-1].flatten(2).transpose(1, 2))  # [b, h * w / 64, karts + 1]
        return {
            "kart": cell_loss(cells, targets["kart"], targets["weight"]),
            "token": token_loss(tokens, targets["token"]),
        }
