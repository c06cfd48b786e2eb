"""TuxNano as a whole: vision encoder, connector and language model; loading from a folder and saving to one."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError, first_line
from ...utils.io import atomic_write
from .config import RETRIEVE, TuxNanoConfig
from .connector import PredictionConnector
from .language_model import KVCache, LanguageModel
from .vision import ModelOutput, VisionEncoder

WEIGHTS_FILE = "model.safetensors"


class TuxNano(nn.Module):
    """A vision-language model. The output layer is the transposed token embedding."""

    def __init__(self, config: TuxNanoConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = VisionEncoder(config.vision)
        self.connector = PredictionConnector(config)
        self.language_model = LanguageModel(config.text)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
    ) -> ModelOutput:
        """Return hidden states and the cache, see `LanguageModel`; image tokens replace the ids of `<image>`.

        Args:
            pixel_values: [b, 1, 3, h, w], an image per row of `input_ids`.
        """
        x = self.language_model.embed_tokens(input_ids)
        if pixel_values is not None:
            vision_tokens = self.vision_encoder(pixel_values.flatten(0, 1)).last_hidden_state
            x = self.insert_image_tokens(input_ids, x, self.connector(vision_tokens))
        return self.language_model(None, attention_mask, position_ids, past_key_values, x, use_cache)

    def insert_image_tokens(self, input_ids: Tensor, embeddings: Tensor, image_tokens: Tensor) -> Tensor:
        """Put image tokens [b, n, d] in the places of `<image>` among the embeddings [b, s, d] of ids [b, s]."""
        is_image = (input_ids == self.config.image_token_id)[..., None]
        return embeddings.masked_scatter(is_image, image_tokens.to(embeddings.dtype))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.language_model.embed_tokens.weight.dtype

    def get_output_embeddings(self) -> nn.Module:
        """Return the output layer, named as in transformers."""
        return self.language_model.embed_tokens

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save(folder)
        with atomic_write(folder / WEIGHTS_FILE) as temporary:
            save_file({name: weight.contiguous() for name, weight in self.state_dict().items()}, temporary)

    @classmethod
    def load(cls, folder: Path) -> "TuxNano":
        """Read a model in float32, in eval mode, without gradients.

        Raises:
            InputError: a file is missing or broken, or config and weights do not fit together.
        """
        config, file = TuxNanoConfig.load(folder), folder / WEIGHTS_FILE
        try:
            with safe_open(file, "pt") as stored:
                # first, since memory is allocated for whatever sizes a config claims
                _check_sizes(config, {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()})  # noqa: SIM118
            model = cls(config)
            model.load_state_dict(load_file(file))  # float16, copied into float32
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise InputError(
                file, f"not the weights that config.json describes ({first_line(error)})", RETRIEVE
            ) from None
        return model.eval().requires_grad_(False)


def _check_sizes(config: TuxNanoConfig, shapes: dict[str, tuple[int, ...]]) -> None:
    """Check every size in a config against the shape of a stored weight, and the number of layers."""
    text, vision = config.text, config.vision
    expected = {
        "language_model.embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "language_model.norm.weight": (text.hidden_size,),
        "connector.count_projection.weight": (text.hidden_size, config.num_counts),
        "connector.track_projection.weight": (text.hidden_size, config.num_tracks),
        "connector.prediction_heads.grid_head.weight": (config.num_karts + 3, vision.hidden_size),
        "vision_encoder.register_tokens.weight": (vision.num_register_tokens, vision.hidden_size),
    }
    if text.num_layers:
        expected |= {
            "language_model.layers.0.mlp.gate_proj.weight": (text.intermediate_size, text.hidden_size),
            "language_model.layers.0.self_attn.q_proj.weight": (text.num_heads * text.head_dim, text.hidden_size),
            "language_model.layers.0.self_attn.k_proj.weight": (text.num_kv_heads * text.head_dim, text.hidden_size),
        }
    for name, first, channels in (("stages", 3, vision.channels), ("foveal_stages", 12, vision.foveal_channels)):
        for number, (inputs, outputs) in enumerate(zip((first, *channels), channels, strict=False)):
            expected[f"vision_encoder.{name}.{number}.0.0.weight"] = (outputs, inputs, 3, 3)
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise ValueError(f"{name} has shape {shapes.get(name)}, config.json says {shape}")
    num_layers = text.num_layers + vision.num_layers + sum(vision.blocks) + sum(vision.foveal_blocks)
    if num_layers > len(shapes) or vision.hidden_size % max(1, vision.num_heads):
        raise ValueError(f"{num_layers} layers for {len(shapes)} weights, or heads that do not divide the width")
