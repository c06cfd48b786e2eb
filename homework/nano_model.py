"""The embedded base's architecture: Idefics3 with a convolutional vision tower and a linear connector.

Text model, processor, tokens, chat template and generation are the stock ones of transformers, so all
code that takes this model takes SmolVLM as well. Importing this module registers it with the Auto classes.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    Idefics3PreTrainedModel,
    Idefics3Processor,
    PreTrainedConfig,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import SizeDict
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from .scene import VIEW_SIZE


@strict
class TuxNanoVisionConfig(PreTrainedConfig):
    """Channels of the residual stages at stride 2, 4, 8 and 16, then attention layers over the last map.

    `batch_norm` is true while the tower is trained from scratch; `fold_batch_norm` makes it false.
    """

    model_type = "tux_nano_vision"
    base_config_key = "vision_config"

    hidden_size: int = 192
    channels: list[int] | tuple[int, ...] = (32, 64, 128, 192)
    blocks: list[int] | tuple[int, ...] = (0, 1, 2, 2)
    num_hidden_layers: int = 2
    num_attention_heads: int = 6
    num_summary_tokens: int = 2
    image_size: int = 100
    patch_size: int = 16
    batch_norm: bool = False
    initializer_range: float = 0.02


@strict
class TuxNanoConfig(Idefics3Config):
    """An `Idefics3Config` whose vision part is a `TuxNanoVisionConfig`."""

    model_type = "tux_nano"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"rms_norm_eps": 1e-5}),
        "vision_config": TuxNanoVisionConfig,
    }


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


class TuxNanoVisionModel(Idefics3PreTrainedModel):
    """Image -> summary tokens, then one token a 16x16 cell, row by row.

    Takes any size: an image is first brought to the height it was trained at, so the grader's 192x192 crop
    shows karts as large as the 150x100 views do. Positions are measured from the image's centre, so the
    cells of a centre crop get the positions that they have in the whole view.
    """

    config: TuxNanoVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResidualBlock", "AttentionLayer"]

    def __init__(self, config: TuxNanoVisionConfig):
        super().__init__(config)
        stages, inputs = [], 3
        for outputs, blocks in zip(config.channels, config.blocks, strict=True):
            down = conv(inputs, outputs, 2, config.batch_norm)
            stages.append(
                nn.Sequential(down, nn.ReLU(), *(ResidualBlock(outputs, config.batch_norm) for _ in range(blocks)))
            )
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.project = nn.Linear(inputs, config.hidden_size)
        self.position = nn.Linear(4 * POSITION_FREQUENCIES, config.hidden_size)
        self.summary = nn.Embedding(config.num_summary_tokens, config.hidden_size)
        self.layers = nn.ModuleList(
            AttentionLayer(config.hidden_size, config.num_attention_heads) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def get_input_embeddings(self) -> nn.Module:
        """The first layer, as peft and transformers ask for it."""
        return self.stages[0]

    def feature_maps(self, pixel_values: Tensor) -> list[Tensor]:
        """[b, 3, h, w] -> the maps of each stage, [b, channels, h / stride, w / stride] rounded up."""
        height, width = pixel_values.shape[-2:]
        if height != self.config.image_size:
            size = (self.config.image_size, round(width * self.config.image_size / height))
            # in float32: torch's antialiasing knows no bfloat16 on CPUs
            resized = F.interpolate(pixel_values.float(), size, mode="bilinear", antialias=True)
            pixel_values = resized.to(pixel_values.dtype)
        x, maps = pixel_values.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def encode(self, feature_map: Tensor) -> Tensor:
        """The last stage's map [b, c, h, w] -> tokens [b, summary + h * w, d]."""
        b, _, h, w = feature_map.shape
        x = self.project(feature_map.flatten(2).transpose(1, 2))  # [b, h * w, d]
        x = x + self.position(cell_positions(h, w, self.config.patch_size, x.device).to(x.dtype))
        x = torch.cat([self.summary.weight.expand(b, -1, -1), x], dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def forward(
        self, pixel_values: Tensor, patch_attention_mask: Tensor | None = None, **_
    ) -> BaseModelOutputWithPooling:
        """[b, 3, h, w] -> last_hidden_state [b, s, d]. The mask is Idefics3's; views have no padding."""
        return BaseModelOutputWithPooling(last_hidden_state=self.encode(self.feature_maps(pixel_values)[-1]))


POSITION_FREQUENCIES = 8


def cell_positions(h: int, w: int, stride: int, device: torch.device) -> Tensor:
    """Sines and cosines of each cell's offset from the image's centre. [h * w, 4 * POSITION_FREQUENCIES].

    A cell's middle lies at `stride * index` pixels (3x3 convolutions, stride 2, padding 1); the wave lengths
    go from 2 cells to 4 times the width of a view.
    """
    scale = torch.logspace(0, 1, POSITION_FREQUENCIES, base=4 * VIEW_SIZE[0] / (2 * stride), device=device)
    y, x = ((torch.arange(n, device=device) - (n - 1) / 2) * torch.pi / scale[:, None] for n in (h, w))
    y, x = y.T[:, None].expand(h, w, -1), x.T[None].expand(h, w, -1)  # [h, w, frequencies]
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1).flatten(0, 1)


class TuxNanoModel(Idefics3Model):
    """`Idefics3Model` with our tower; its forward, merging and caching are inherited."""

    config: TuxNanoConfig

    def __init__(self, config: TuxNanoConfig):
        Idefics3PreTrainedModel.__init__(self, config)  # not Idefics3Model: that builds the tower we replace
        self.padding_idx = config.text_config.pad_token_id
        self.vocab_size = config.text_config.vocab_size
        self.vision_model = TuxNanoVisionModel._from_config(config.vision_config)
        self.connector = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.text_model = AutoModel.from_config(config.text_config)
        self.image_seq_len = image_seq_len(config.vision_config)
        self.image_token_id = config.image_token_id
        self.post_init()


class TuxNanoForConditionalGeneration(Idefics3ForConditionalGeneration):
    """The generative model of the embedded base."""

    config: TuxNanoConfig

    def __init__(self, config: TuxNanoConfig):
        Idefics3PreTrainedModel.__init__(self, config)
        self.model = TuxNanoModel(config)
        self.image_token_id = config.image_token_id
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.vocab_size = config.text_config.vocab_size
        self.post_init()


class TuxNanoImageProcessor(Idefics3ImageProcessorPil):
    """Idefics3's image processor without its square: every image becomes a 150x100 view."""

    do_image_splitting = False
    do_resize = False  # the resize to a longest edge that comes before the one below
    max_image_size = {"longest_edge": VIEW_SIZE[0]}

    def resize(self, image, size: SizeDict, resample=None, **kwargs):
        """[3, h, w] -> [3, 100, 150], whatever `size` says."""
        if image.shape[-2:] == VIEW_SIZE[::-1]:
            return image
        view = SizeDict(height=VIEW_SIZE[1], width=VIEW_SIZE[0])
        return super().resize(image, view, resample=resample, **kwargs)


class TuxNanoProcessor(Idefics3Processor):
    """Idefics3's processor under a name that finds our image processor."""


def image_seq_len(config: TuxNanoVisionConfig) -> int:
    """How many tokens a 150x100 view becomes."""
    width, height = (-(-side // config.patch_size) for side in VIEW_SIZE)
    return config.num_summary_tokens + width * height


@torch.no_grad()
def fold_batch_norm(tower: TuxNanoVisionModel) -> TuxNanoVisionModel:
    """The same function (in eval mode) with each batch norm folded into its convolution's weight and bias."""
    config = TuxNanoVisionConfig(**{**tower.config.to_dict(), "batch_norm": False})
    folded = TuxNanoVisionModel(config)
    weights = {}
    for name, module in tower.named_modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            convolution, norm = module
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights[f"{name}.0.weight"] = convolution.weight * scale[:, None, None, None]
            weights[f"{name}.0.bias"] = norm.bias - norm.running_mean * scale
    rest = {k: v for k, v in tower.state_dict().items() if not k.startswith("stages.")}
    folded.load_state_dict(weights | rest)
    return folded.eval()


AutoConfig.register("tux_nano_vision", TuxNanoVisionConfig)
AutoConfig.register("tux_nano", TuxNanoConfig)
AutoModel.register(TuxNanoVisionConfig, TuxNanoVisionModel)
AutoModel.register(TuxNanoConfig, TuxNanoModel)
AutoModelForImageTextToText.register(TuxNanoConfig, TuxNanoForConditionalGeneration)
AutoImageProcessor.register(TuxNanoConfig, slow_image_processor_class=TuxNanoImageProcessor)
AutoProcessor.register(TuxNanoConfig, TuxNanoProcessor)
