"""The stages `fovea` and `vision`, which train the vision encoder, of either shape, and its heads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.connector import average_tta
from homework.models.tux_nano.vision import NUM_FOVEAL_TOKENS, VisionEncoder, cell_centers, cell_positions

from .assemble import init_weights
from .box_decoder import BoxDecoder
from .box_targets import box_targets
from .boxes import BoxEncoder, box_loss, init_boxes
from .config import RunConfig
from .dataset import PretrainDataset, build_targets
from .dense_heads import DenseHeads, cell_loss, dense_loss, fuse_logits, run_heads, token_loss
from .targets import KARTS
from .trainer import copy_tensors, errors_as_input_error, read_checkpoint, trained_tensors

FOVEAL_PARTS = ("vision_encoder.foveal_stages.", "heads.foveal_map.")  # weights that the stage `fovea` trains


class GridEncoder(VisionEncoder):
    """A vision encoder without the foveal branch; its tokens are those of registers and grid cells."""

    def __init__(self, config: VisionConfig):
        super().__init__(config)
        del self.foveal_stages, self.foveal_projection

    def foveal_maps(self, window: Tensor) -> list[Tensor]:
        """Return no maps."""
        return []

    def encode_grid(self, grid_map: Tensor) -> Tensor:
        """Turn the last map [b, c, h, w] into tokens [b, registers + cells, d]."""
        centers = cell_centers(grid_map.shape[-1], grid_map.device)[:-NUM_FOVEAL_TOKENS]
        x = self.grid_projection(grid_map.flatten(2).transpose(1, 2))
        x = x + self.position_projection(cell_positions(centers).to(x.dtype))
        x = torch.cat([self.register_tokens.weight.expand(len(x), -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class VisionStage(nn.Module):
    """The vision encoder and its pretraining heads."""

    def __init__(self, config: RunConfig, views: PretrainDataset | None = None):
        super().__init__()
        self.config, self.views, self.parts = config, views, config.parts
        encoder = VisionEncoder if config.parts.foveal_branch else GridEncoder
        self.vision_encoder = init_weights(encoder(config.vision_config)).to(memory_format=torch.channels_last)
        self.heads = DenseHeads(config.vision_config, config.parts)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Encode pixels [b, 3, h, w], and return logits by name."""
        return run_heads(self.vision_encoder, self.heads, pixels)[0]

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return fused logits, as the connector reads them, of pixels [b, 3, h, w]."""
        parts = self.parts
        pixels = pixels.to(next(self.parameters()).device)
        passes = [pixels, pixels.flip(-1)] if parts.flip_tta else [pixels]
        return average_tta([fuse_logits(self(one), parts) for one in passes])

    def load_previous(self, run_dir: Path) -> None:
        """Take over the foveal weights of the run's stage `fovea`."""
        if self.parts.foveal_branch:
            saved = read_checkpoint(run_dir / "fovea.pt")["average"]
            load_average(self, run_dir / "fovea.pt", {k: v for k, v in saved.items() if k.startswith(FOVEAL_PARTS)})

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Make a batch; in the last steps no view is zoomed and no kart added."""
        return self.sample_views(rng, as_rendered, build_targets)

    def sample_views(
        self, rng: np.random.Generator, as_rendered: bool, make_targets: Callable[..., dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Make a batch with targets from the scenes, and the first and the number of the columns shown."""
        augment = self.config.augment.as_rendered() if as_rendered else self.config.augment
        pixels, scenes, columns = self.views.sample_batch(rng, self.config.stages["vision"].batch_size, augment)
        return pixels, make_targets(scenes, *columns)

    def losses(self, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute one scalar loss per target."""
        pixels, targets = batch
        return dense_loss(self(pixels), targets)


class BoxStage(VisionStage):
    """A vision encoder of shape `boxes`."""

    def __init__(self, config: RunConfig, views: PretrainDataset | None = None):
        nn.Module.__init__(self)
        self.config, self.views, self.parts = config, views, config.parts
        encoder = init_boxes(init_weights(BoxEncoder(config.vision_config)))
        self.vision_encoder, self.decoder = encoder.to(memory_format=torch.channels_last), BoxDecoder()

    @torch.no_grad()
    def predict(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return logits as the connector reads them, of pixels [b, 3, h, w]; in eval mode."""
        tokens = self.vision_encoder(pixels.to(next(self.parameters()).device)).last_hidden_state
        return self.decoder(tokens if self.parts.flip_tta else tokens[:, :1])

    def load_previous(self, run_dir: Path) -> None:
        """Begin from random weights."""

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Make a batch; in the last steps no view is zoomed and no kart added."""
        return self.sample_views(rng, as_rendered, box_targets)

    def losses(self, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute one scalar loss per target."""
        pixels, targets = batch
        return box_loss(self.vision_encoder.encode(pixels), targets)


class FoveaStage(VisionStage):
    """Vision encoder and heads, of which only the foveal convolutions are trained, to name small karts.

    A step costs a third of one of the stage `vision`, and its windows are full of far karts, which views have few of.
    """

    def __init__(self, config: RunConfig, views: PretrainDataset | None = None):
        super().__init__(config, views)
        self.requires_grad_(False)
        # head of the last map, discarded afterwards
        self.last = nn.Linear(config.vision.foveal_channels[-1], len(KARTS) + 1)
        nn.init.constant_(self.last.bias, -4.0)
        self.vision_encoder.foveal_stages.requires_grad_(True)
        self.heads.foveal_map.requires_grad_(True)

    def load_previous(self, run_dir: Path) -> None:
        """Begin from random weights."""

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Make a batch of windows."""
        return self.views.sample_windows(rng, self.config.stages["fovea"].batch_size, self.config.augment)

    def losses(self, batch: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
        """Compute one scalar loss per target, for windows [b, 3, h, w] of `PretrainDataset.sample_windows`."""
        windows, targets = batch
        maps = self.vision_encoder.foveal_maps(windows)
        cells = self.heads.classify_fovea_cells(maps[-2])
        tokens = self.last(maps[-1].flatten(2).transpose(1, 2))  # [b, h * w / 64, karts + 1]
        return {
            "kart": cell_loss(cells, targets["kart"], targets["weight"]),
            "token": token_loss(tokens, targets["token"]),
        }


def load_average(module: nn.Module, file: Path, average: dict[str, Tensor] | None = None) -> None:
    """Load the averaged weights of a checkpoint, or the given part of them, into a module.

    Raises:
        InputError: the file is missing, broken, or of another architecture.
    """
    average = read_checkpoint(file)["average"] if average is None else average
    trained = trained_tensors(module)
    with errors_as_input_error(file):
        copy_tensors({name: trained.get(name, torch.empty(0)) for name in average}, average)


def build_vision_stage(config: RunConfig, views: PretrainDataset | None = None) -> VisionStage:
    """Build the stage `vision` of the config's shape."""
    return (BoxStage if config.shape == "boxes" else VisionStage)(config, views)


def load_vision_stage(config: RunConfig, run_dir: Path) -> VisionStage:
    """Build the stage `vision` with the averaged weights of a run's checkpoint, in eval mode."""
    stage = build_vision_stage(config)
    load_average(stage, run_dir / "vision.pt")
    return stage.eval()
