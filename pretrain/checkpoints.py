"""The vision encoder's stages, and the weights that they begin with."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.vision import VisionEncoder

from .assemble import init_weights
from .dense_heads import DenseHeads, cell_loss, run_heads, token_loss
from .targets import KARTS
from .trainer import errors_as_input_error, read_checkpoint

VISION_CONFIG = VisionConfig(batch_norm=True)


class VisionStage(nn.Module):
    """The vision encoder and its pretraining heads."""

    def __init__(self, config: VisionConfig = VISION_CONFIG):
        super().__init__()
        self.vision_encoder = init_weights(VisionEncoder(config)).to(memory_format=torch.channels_last)
        self.heads = DenseHeads(config)

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Encode pixels [b, 3, h, w], and return (logits by name, tokens [b, s, d])."""
        return run_heads(self.vision_encoder, self.heads, pixels)


class FoveaStage(VisionStage):
    """Vision encoder and heads, of which only the foveal convolutions are trained, to name small karts.

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


def load_vision_weights(stage: VisionStage, file: Path) -> VisionStage:
    """Load encoder and heads of a run's fovea.pt or dense.pt, or of a file that `export` wrote, into a stage."""
    remedy = "give a run's dense.pt, or pretrain/stage.safetensors"
    with errors_as_input_error(file, "not a saved vision stage", remedy):
        weights = read_checkpoint(file)["model"] if file.suffix == ".pt" else load_file(file)
        for part in ("vision_encoder", "heads"):
            saved = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
            stage.get_submodule(part).load_state_dict(saved)
    return stage


def load_vision_stage(file: Path) -> VisionStage:
    """Build the stage that was saved in a file, see `load_vision_weights`."""
    return load_vision_weights(VisionStage(), file)
