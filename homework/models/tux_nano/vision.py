"""TuxNano's vision encoder: convolutions over the view, finer ones over its middle, attention over both."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...labels.scene import VIEW_SIZE
from .config import VisionConfig

# The foveal branch works at twice the resolution on the part of a view around the horizon, where far karts are: columns
# around the middle one, and rows from a first one on.
FOVEA_SIZE, FOVEA_TOP = (96, 32), 32
STRIDE, GRID_ROWS = 16, 7  # of a view's grid cells: pixels, and how many lie above each other
FOVEAL_STRIDE = STRIDE // 2
NUM_FOVEAL_TOKENS = FOVEA_SIZE[0] * FOVEA_SIZE[1] // FOVEAL_STRIDE**2
NUM_POSITION_FREQUENCIES = 8
# (y, x) in pixels of the foveal grid's first cell centre, from the centre of the view's grid (10 by 7 cells).
FOVEA_CORNER = (FOVEA_TOP - 48, (VIEW_SIZE[0] - FOVEA_SIZE[0]) // 2 - 72)


class ModelOutput(NamedTuple):
    """The output of a model, under the names that transformers' outputs have."""

    last_hidden_state: Tensor
    past_key_values: object = None  # of a language model


def conv(in_channels: int, out_channels: int, stride: int, batch_norm: bool) -> nn.Sequential:
    """Build a 3x3 convolution: with a batch norm, or with the bias that the norm is folded into."""
    layers = [nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=not batch_norm)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """Compute relu(x + conv(relu(conv(x)))), He et al. 2015 (arXiv:1512.03385)."""

    def __init__(self, channels: int, batch_norm: bool):
        super().__init__()
        self.conv1 = conv(channels, channels, 1, batch_norm)
        self.conv2 = conv(channels, channels, 1, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


def residual_stages(
    in_channels: int, channels: Sequence[int], blocks: Sequence[int], strides: Sequence[int], batch_norm: bool
) -> nn.ModuleList:
    """Build residual stages: a strided 3x3 convolution followed by `blocks[i]` residual blocks."""
    stages = []
    for out_channels, num_blocks, stride in zip(channels, blocks, strides, strict=True):
        down = conv(in_channels, out_channels, stride, batch_norm)
        residual = (ResidualBlock(out_channels, batch_norm) for _ in range(num_blocks))
        stages.append(nn.Sequential(down, nn.ReLU(), *residual))
        in_channels = out_channels
    return nn.ModuleList(stages)


def run_stages(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Return the feature map of each stage, [b, channels, h / stride, w / stride] rounded up, from x [b, c, h, w]."""
    x, maps = x.contiguous(memory_format=torch.channels_last), []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


class AttentionLayer(nn.Module):
    """A pre-norm transformer encoder layer. [b, s, d] -> [b, s, d]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        # [b, s, 3d] -> 3 x [b, heads, s, d / heads]
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionEncoder(nn.Module):
    """Encode an image as register tokens, a token per 16x16 grid cell and one per 8x8 foveal cell, row by row.

    Images of any size are resized to the height of the training images, so that the grader's 192x192 crop shows karts
    as large as the 150x100 views do. Positions are relative to the image's centre, so the cells of a centre crop have
    the positions that they have in the whole view.

    Outside training mode, the image is encoded twice: as it is and flipped left to right (horizontal-flip test-time
    augmentation, TTA), since a mirrored view is as likely in the game.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.stages = residual_stages(3, config.channels, config.blocks, (2, 2, 2, 2), config.batch_norm)
        foveal = config.foveal_channels, config.foveal_blocks, (1, 2, 2), config.batch_norm
        self.foveal_stages = residual_stages(12, *foveal)
        self.grid_projection = nn.Linear(config.channels[-1], config.hidden_size)
        self.foveal_projection = nn.Linear(config.foveal_channels[-1], config.hidden_size)
        self.position_projection = nn.Linear(4 * NUM_POSITION_FREQUENCIES, config.hidden_size)
        self.register_tokens = nn.Embedding(config.num_register_tokens, config.hidden_size)
        layers = (AttentionLayer(config.hidden_size, config.num_heads) for _ in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.hidden_size)

    def feature_maps(self, pixel_values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the feature maps (see `run_stages`) of the view and of its fovea, from [b, 3, h, w]."""
        height, width = pixel_values.shape[-2:]
        if height != self.config.image_height:
            size = (self.config.image_height, round(width * self.config.image_height / height))
            # in float32: torch has no antialiasing in bfloat16 on CPUs
            resized = F.interpolate(pixel_values.float(), size, mode="bilinear", antialias=True)
            pixel_values = resized.to(pixel_values.dtype)
        missing = max(0, FOVEA_SIZE[0] - pixel_values.shape[-1])  # columns of an image narrower than the fovea
        fovea = F.pad(pixel_values, (missing // 2, missing - missing // 2))
        left = (fovea.shape[-1] - FOVEA_SIZE[0]) // 2
        fovea = fovea[..., FOVEA_TOP : FOVEA_TOP + FOVEA_SIZE[1], left : left + FOVEA_SIZE[0]]
        return run_stages(self.stages, pixel_values), self.foveal_maps(fovea)

    def foveal_maps(self, window: Tensor) -> list[Tensor]:
        """Return the feature maps of the foveal stages for a window of the fovea's size, [b, 3, h, w]."""
        # 2x2 pixels become 12 channels: half the size without a loss
        return run_stages(self.foveal_stages, F.pixel_unshuffle(window, 2))

    def encode(self, grid_map: Tensor, foveal_map: Tensor) -> Tensor:
        """Turn the last stages' maps [b, c, h, w] of view and fovea into tokens [b, registers + cells of both, d]."""
        parts = [self.register_tokens.weight.expand(len(grid_map), -1, -1)]
        positions = cell_positions(cell_centers(grid_map.shape[-1], grid_map.device))
        positions = positions.split((grid_map.shape[-2:].numel(), NUM_FOVEAL_TOKENS))
        for project, feature_map, position in zip(
            (self.grid_projection, self.foveal_projection), (grid_map, foveal_map), positions, strict=True
        ):
            x = project(feature_map.flatten(2).transpose(1, 2))  # [b, h * w, d]
            parts.append(x + self.position_projection(position.to(x.dtype)))
        x = torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        """Encode [b, 3, h, w] as `last_hidden_state` [b, passes, s, d]: one pass in training mode, else two (TTA)."""
        passes = [pixel_values] if self.training else [pixel_values, pixel_values.flip(-1)]
        tokens = self.encode(*(maps[-1] for maps in self.feature_maps(torch.cat(passes))))  # [passes * b, s, d]
        return ModelOutput(tokens.unflatten(0, (len(passes), -1)).transpose(0, 1))


def split_tokens(tokens: Tensor, num_register_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split one pass's tokens [b, s, d] into register tokens, grid tokens and foveal tokens."""
    return tokens.tensor_split([num_register_tokens, tokens.shape[1] - NUM_FOVEAL_TOKENS], dim=1)


def cell_centers(num_columns: int, device: torch.device) -> Tensor:
    """Return the cells' centres (y, x) in pixels from the image's centre, [grid + foveal cells, 2], row by row.

    Cells lie a stride apart (3x3 convolutions, stride 2, padding 1).
    """
    half = STRIDE // 2
    grids = (
        (GRID_ROWS, num_columns, -half * (GRID_ROWS - 1), -half * (num_columns - 1), STRIDE),
        (FOVEA_SIZE[1] // FOVEAL_STRIDE, FOVEA_SIZE[0] // FOVEAL_STRIDE, *FOVEA_CORNER, FOVEAL_STRIDE),
    )
    cells = []
    for h, w, top, left, stride in grids:
        y, x = torch.arange(h, device=device) * stride + top, torch.arange(w, device=device) * stride + left
        cells.append(torch.cartesian_prod(y, x))
    return torch.cat(cells).float()


def cell_positions(centers: Tensor) -> Tensor:
    """Encode offsets (y, x) in pixels as sines and cosines: [cells, 2] -> [cells, 4 * frequencies].

    The wavelengths go from 2 strides to 4 times the width of a view.
    """
    base = 4 * VIEW_SIZE[0] / (2 * STRIDE)
    scale = torch.logspace(0, 1, NUM_POSITION_FREQUENCIES, base=base, device=centers.device)
    y, x = (centers.T[..., None] / STRIDE * torch.pi / scale).unbind(0)  # [cells, frequencies]
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1)
