"""The embedded base's architecture: Idefics3 with a convolutional vision tower and a connector that reads its summary.

Text model, processor, tokens, chat template and generation are the stock ones of transformers, so all
code that takes this model takes SmolVLM as well. Importing this module registers it with the Auto classes.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
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

from ...labels.scene import VIEW_SIZE
from .connector import build_connector
from .vision import VisionEncoder


@strict
class TuxNanoVisionConfig(PreTrainedConfig):
    """Channels of the residual stages at stride 2, 4, 8 and 16, then attention layers over the last map.

    The fovea has stages of its own, at stride 2, 4 and 8, which spend more on each of its pixels.
    `batch_norm` is true while the tower is trained from scratch; `fold_batch_norm` of `pretrain.assemble` makes it false.
    """

    model_type = "tux_nano_vision"
    base_config_key = "vision_config"

    hidden_size: int = 192
    channels: list[int] | tuple[int, ...] = (32, 64, 128, 192)
    blocks: list[int] | tuple[int, ...] = (0, 1, 2, 2)
    fovea_channels: list[int] | tuple[int, ...] = (32, 96, 192)
    fovea_blocks: list[int] | tuple[int, ...] = (1, 2, 1)
    num_hidden_layers: int = 2
    num_attention_heads: int = 6
    num_summary_tokens: int = 2
    image_size: int = 100
    patch_size: int = 16
    batch_norm: bool = False
    initializer_range: float = 0.02


class TuxNanoVisionModel(VisionEncoder, Idefics3PreTrainedModel):
    """The `VisionEncoder` as a model of transformers."""

    config: TuxNanoVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResidualBlock", "AttentionLayer"]

    def __init__(self, config: TuxNanoVisionConfig):
        Idefics3PreTrainedModel.__init__(self, config)
        self.build(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def get_input_embeddings(self) -> nn.Module:
        """The first layer, as peft and transformers ask for it."""
        return self.stages[0]

    def forward(
        self, pixel_values: Tensor, patch_attention_mask: Tensor | None = None, **_
    ) -> BaseModelOutputWithPooling:
        """[b, 3, h, w] -> last_hidden_state [b, looks, s, d]. The mask is Idefics3's; views have no padding."""
        return BaseModelOutputWithPooling(last_hidden_state=self.look(pixel_values))


@strict
class TuxNanoConfig(Idefics3Config):
    """An `Idefics3Config` whose vision part is a `TuxNanoVisionConfig`; for what is told of a view, see `PredictionConnector`."""

    model_type = "tux_nano"
    num_karts: int = 18
    num_tracks: int = 21
    num_counts: int = 10
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs={"rms_norm_eps": 1e-5}),
        "vision_config": TuxNanoVisionConfig,
    }


class TuxNanoModel(Idefics3Model):
    """`Idefics3Model` with our tower; its forward, merging and caching are inherited."""

    config: TuxNanoConfig

    def __init__(self, config: TuxNanoConfig):
        Idefics3PreTrainedModel.__init__(self, config)  # not Idefics3Model: that builds the tower we replace
        self.padding_idx = config.text_config.pad_token_id
        self.vocab_size = config.text_config.vocab_size
        self.vision_model = TuxNanoVisionModel._from_config(config.vision_config)
        self.connector = build_connector(config)
        self.text_model = AutoModel.from_config(config.text_config)
        self.image_seq_len = self.connector.slot.num_embeddings
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


AutoConfig.register("tux_nano_vision", TuxNanoVisionConfig)
AutoConfig.register("tux_nano", TuxNanoConfig)
AutoModel.register(TuxNanoVisionConfig, TuxNanoVisionModel)
AutoModel.register(TuxNanoConfig, TuxNanoModel)
AutoModelForImageTextToText.register(TuxNanoConfig, TuxNanoForConditionalGeneration)
AutoImageProcessor.register(TuxNanoConfig, slow_image_processor_class=TuxNanoImageProcessor)
AutoProcessor.register(TuxNanoConfig, TuxNanoProcessor)
