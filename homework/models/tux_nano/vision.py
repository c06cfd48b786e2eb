"""The embedded base's vision tower: convolutions over the view, finer ones over its middle, attention over both."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...labels.scene import VIEW_SIZE

# The part of a view around the horizon where far karts are: columns around the middle one, and rows.
FOVEA_SIZE, FOVEA_TOP = (96, 32), 32
STRIDE, ROWS = 16, 7  # of a view's cells: pixels, and how many are above each other
FOVEA_STRIDE = STRIDE // 2
FOVEA_TOKENS = FOVEA_SIZE[0] * FOVEA_SIZE[1] // FOVEA_STRIDE**2


def conv(inputs: int, outputs: int, stride: int, batch_norm: bool) -> nn.Sequential:
    """3x3 convolution; with a batch norm, or with the bias that the norm folds into."""
    layers = [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """relu(x + conv(relu(conv(x)))), He et al. 2015 (arXiv:1512.03385)."""

    def __init__(self, channels: int, batch_norm: bool):
        super().__init__()
        self.conv1 = conv(channels, channels, 1, batch_norm)
        self.conv2 = conv(channels, channels, 1, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def residual_stages(
    inputs: int, channels: Sequence[int], blocks: Sequence[int], strides: Sequence[int], batch_norm: bool
) -> nn.ModuleList:
    """Each a convolution of its stride, then blocks."""
    stages = []
    for outputs, count, stride in zip(channels, blocks, strides, strict=True):
        down = conv(inputs, outputs, stride, batch_norm)
        stages.append(nn.Sequential(down, nn.ReLU(), *(ResidualBlock(outputs, batch_norm) for _ in range(count))))
        inputs = outputs
    return nn.ModuleList(stages)


def run_stages(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """[b, c, h, w] -> the map of each stage, [b, channels, h / stride, w / stride] rounded up."""
    x, maps = x.contiguous(memory_format=torch.channels_last), []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


class ModelOutput(NamedTuple):
    """What a model gives, under the names that those of transformers have for it."""

    last_hidden_state: Tensor
    past_key_values: object = None  # of a text model


class AttentionLayer(nn.Module):
    """A pre-norm transformer encoder layer. [b, s, d] -> [b, s, d]."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        # [b, s, 3d] -> 3 x [b, heads, s, d / heads]
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionEncoder(nn.Module):
    """Image -> summary tokens, one token a cell of 16x16 pixels, one a cell of 8x8 of the fovea; row by row.

    Takes any size: an image is first brought to the height it was trained at, so the grader's 192x192 crop
    shows karts as large as the 150x100 views do. Positions are measured from the image's centre, so the
    cells of a centre crop get the positions that they have in the whole view.

    It looks twice, at the image and at its mirror image, which is as likely a view of the game; once in training mode.
    """

    def __init__(self, config):
        super().__init__()
        self.build(config)

    def build(self, config) -> None:
        """The layers. `TuxNanoVisionModel` calls it, as it begins as a model of transformers instead of as this does.

        Args:
            config: a `TuxNanoVisionConfig`, or what has its fields.
        """
        self.config = config
        self.stages = residual_stages(3, config.channels, config.blocks, (2, 2, 2, 2), config.batch_norm)
        self.fovea = residual_stages(12, config.fovea_channels, config.fovea_blocks, (1, 2, 2), config.batch_norm)
        self.project = nn.Linear(config.channels[-1], config.hidden_size)
        self.fovea_project = nn.Linear(config.fovea_channels[-1], config.hidden_size)
        self.position = nn.Linear(4 * POSITION_FREQUENCIES, config.hidden_size)
        self.summary = nn.Embedding(config.num_summary_tokens, config.hidden_size)
        self.layers = nn.ModuleList(
            AttentionLayer(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)

    def feature_maps(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """[b, 3, h, w] -> the maps of the stages (see `run_stages`) of the view, and of its fovea."""
        height, width = pixel_values.shape[-2:]
        if height != self.config.image_size:
            size = (self.config.image_size, round(width * self.config.image_size / height))
            # in float32: torch's antialiasing knows no bfloat16 on CPUs
            resized = F.interpolate(pixel_values.float(), size, mode="bilinear", antialias=True)
            pixel_values = resized.to(pixel_values.dtype)
        missing = max(0, FOVEA_SIZE[0] - pixel_values.shape[-1])  # columns of an image narrower than the fovea
        fovea = F.pad(pixel_values, (missing // 2, missing - missing // 2))
        left = (fovea.shape[-1] - FOVEA_SIZE[0]) // 2
        fovea = fovea[..., FOVEA_TOP : FOVEA_TOP + FOVEA_SIZE[1], left : left + FOVEA_SIZE[0]]
        return run_stages(self.stages, pixel_values), self.fovea_maps(fovea)

    def fovea_maps(self, window: Tensor) -> list[Tensor]:
        """A window of the fovea's size [b, 3, h, w] -> the maps of the fovea's stages (see `run_stages`)."""
        # 2x2 pixels become 12 channels: half the size, and nothing is lost
        return run_stages(self.fovea, F.pixel_unshuffle(window, 2))

    def encode(self, view: Tensor, fovea: Tensor) -> Tensor:
        """The last stages' maps [b, c, h, w] of view and fovea -> tokens [b, summary + cells of both, d]."""
        parts = [self.summary.weight.expand(len(view), -1, -1)]
        positions = cell_positions(cell_centers(view.shape[-1], view.device))
        positions = positions.split((view.shape[-2:].numel(), FOVEA_TOKENS))
        for project, feature_map, position in zip(
            (self.project, self.fovea_project), (view, fovea), positions, strict=True
        ):
            x = project(feature_map.flatten(2).transpose(1, 2))  # [b, h * w, d]
            parts.append(x + self.position(position.to(x.dtype)))
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """[b, 3, h, w] -> last_hidden_state [b, looks, s, d]."""
        return ModelOutput(self.look(pixel_values))

    def look(self, pixel_values: Tensor) -> Tensor:
        """[b, 3, h, w] -> tokens [b, looks, s, d]."""
        looks = [pixel_values] if self.training else [pixel_values, pixel_values.flip(-1)]
        tokens = self.encode(*(maps[-1] for maps in self.feature_maps(torch.cat(looks))))  # [looks * b, s, d]
        return tokens.unflatten(0, (len(looks), -1)).transpose(0, 1)


POSITION_FREQUENCIES = 8
# The fovea's first cell, from the middle of the view's cells (10 by 7): y, x in pixels.
FOVEA_CORNER = (FOVEA_TOP - 48, (VIEW_SIZE[0] - FOVEA_SIZE[0]) // 2 - 72)


def split_tokens(tokens: Tensor, summary: int) -> tuple[Tensor, Tensor, Tensor]:
    """A look's tokens [b, s, d] -> the `summary` first ones, those of the view's cells, those of the fovea's."""
    return tokens.tensor_split([summary, tokens.shape[1] - FOVEA_TOKENS], dim=1)


def cell_centers(columns: int, device: torch.device) -> Tensor:
    """The cells' middles, from the image's centre in pixels. [ROWS * columns + FOVEA_TOKENS, 2] (y, x), row by row.

    Cells lie a stride apart (3x3 convolutions, stride 2, padding 1).
    """
    half = STRIDE // 2
    grids = (
        (ROWS, columns, -half * (ROWS - 1), -half * (columns - 1), STRIDE),
        (FOVEA_SIZE[1] // FOVEA_STRIDE, FOVEA_SIZE[0] // FOVEA_STRIDE, *FOVEA_CORNER, FOVEA_STRIDE),
    )
    return torch.cat(
        [
            torch.cartesian_prod(
                *(torch.arange(n, device=device) * stride + first for n, first in ((h, top), (w, left)))
            )
            for h, w, top, left, stride in grids
        ]
    ).float()


def cell_positions(middles: Tensor) -> Tensor:
    """Sines and cosines of each cell's offset from the image's centre. [cells, 2] -> [cells, 4 * POSITION_FREQUENCIES].

    The wave lengths go from 2 strides to 4 times the width of a view.

    Args:
        middles: (y, x) in pixels.
    """
    scale = torch.logspace(0, 1, POSITION_FREQUENCIES, base=4 * VIEW_SIZE[0] / (2 * STRIDE), device=middles.device)
    y, x = (middles.T[..., None] / STRIDE * torch.pi / scale).unbind(0)  # [cells, frequencies]
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1)
