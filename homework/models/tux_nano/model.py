"""The embedded base for answers without transformers and peft, whose imports take longer than all else of a start.

What is read here is what this package writes: a base of the embedded architecture, and LoRA on linear layers. All else,
a setting that is not known here too, is left to transformers and peft, which load it, or say what is wrong with it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...utils.io import read_json
from .connector import build_connector
from .language_model import KVCache, TextModel
from .processor import QuickProcessor
from .supported_config import FILES, require, require_known
from .vision import ModelOutput, VisionEncoder

# What must be in a base's config for the model here to be that which transformers would make of it.
MODEL = {"model_type": "tux_nano", "tie_word_embeddings": True, "scale_factor": 1}
MODEL_SIZES = {"image_token_id", "num_karts", "num_tracks", "num_counts", "text_config", "vision_config"}
TEXT = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}
TEXT_SIZES = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters"),
}
VISION = {"model_type": "tux_nano_vision"}
VISION_SIZES = {
    *("hidden_size", "channels", "blocks", "fovea_channels", "fovea_blocks", "num_hidden_layers"),
    *("num_attention_heads", "num_summary_tokens", "image_size", "patch_size", "batch_norm"),
}
LORA = {"peft_type": "LORA", "init_lora_weights": True}
LORA_SIZES = {"r", "lora_alpha", "target_modules", "exclude_modules"}


class TuxNanoInner(nn.Module):
    """`TuxNanoModel` for answers: what the tower recognises takes the place of the image's tokens."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.image_token_id = config.image_token_id
        self.vision_model = VisionEncoder(config.vision_config)
        self.connector = build_connector(config)
        self.text_model = TextModel(config.text_config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool = False,
    ) -> ModelOutput:
        """See `TextModel`; pixel_values are [b, 1, 3, h, w]."""
        x = self.text_model.embed_tokens(input_ids)
        if pixel_values is not None:
            told = self.connector(self.vision_model.look(pixel_values.flatten(0, 1)))  # [b, told, d]
            x = x.masked_scatter((input_ids == self.image_token_id)[..., None], told.to(x.dtype))
        return self.text_model(None, attention_mask, position_ids, past_key_values, x, use_cache)


class TuxNano(nn.Module):
    """`TuxNanoForConditionalGeneration` for answers; its weights have the same names."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.model = TuxNanoInner(config)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.get_output_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return self.get_output_embeddings().weight.dtype

    def get_output_embeddings(self) -> nn.Module:
        """The output layer is the embedding."""
        return self.model.text_model.embed_tokens


def load(
    base: str, adapter: str | Path | None = None, part: Callable[[TuxNano], nn.Module] = lambda model: model
) -> tuple[nn.Module, QuickProcessor] | None:
    """A model in float32 on the CPU, in eval mode, with its processor.

    Args:
        base: its folder.
        adapter: a PEFT folder, whose LoRA is added to the model's weights.
        part: makes of the base the model that the adapter is for.

    Returns:
        None where this is not for it, or anything is wrong with it.
    """
    try:
        require({file.name for file in Path(base).iterdir()} <= FILES)
        vlm, processor = read_model(Path(base)), QuickProcessor(Path(base))
        image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
        expected = vlm.model.connector.slot.num_embeddings, vlm.model.image_token_id
        require((processor.image_seq_len, image_token) == expected)
        model = part(vlm).eval()
        if adapter is not None:
            add_lora_weights(model, Path(adapter))
        return model, processor
    except Exception:  # whatever it is, who loads it instead says it better
        return None


def read_model(folder: Path) -> TuxNano:
    """The base of a folder, in float32.

    Raises:
        Exception: of any kind; it is no base of the embedded architecture, or broken.
    """
    config = read_json(folder / "config.json")
    text, vision = config["text_config"], config["vision_config"]
    for settings, known, sizes in (
        (config, MODEL, MODEL_SIZES),
        (text, TEXT, TEXT_SIZES),
        (vision, VISION, VISION_SIZES),
    ):
        require_known(settings, known, sizes)
    rope = text["rope_parameters"]
    require(rope.keys() == {"rope_type", "rope_theta"} and rope["rope_type"] == "default" and rope["rope_theta"] > 0)
    weights = load_file(folder / "model.safetensors")
    depths = text["num_hidden_layers"], vision["num_hidden_layers"], *vision["blocks"], *vision["fovea_blocks"]
    require(all(0 <= depth <= len(weights) for depth in depths))  # each layer has some of them
    parts = {"text_config": SimpleNamespace(**text), "vision_config": SimpleNamespace(**vision)}
    with torch.device("meta"), Unset():  # whatever size a config claims, it takes no memory
        model = TuxNano(SimpleNamespace(**config | parts))
    model.load_state_dict({name: weight.float() for name, weight in weights.items()}, assign=True)
    return model.requires_grad_(False)


@torch.no_grad()
def add_lora_weights(model: nn.Module, folder: Path) -> None:
    """Add a PEFT folder's LoRA to the weights of the linear layers that it names: W + B A alpha / r (arXiv:2106.09685).

    Raises:
        Exception: of any kind; it is not for this model, broken, or more than plain LoRA.
    """
    config = {
        name: value for name, value in read_json(folder / "adapter_config.json").items() if value and value != "none"
    }
    require_known(config, LORA, LORA_SIZES)
    targets, excluded = config["target_modules"], config.get("exclude_modules")
    require(isinstance(targets, list) and "lm_head" not in targets)  # which is the embedding here
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in targets and not (excluded and re.fullmatch(excluded, name))
    }
    weights, prefix = load_file(folder / "adapter_model.safetensors"), "base_model.model."
    require(weights.keys() == {f"{prefix}{name}.lora_{half}.weight" for name in layers for half in "AB"})
    for name, layer in layers.items():
        down, up = (weights[f"{prefix}{name}.lora_{half}.weight"].float() for half in "AB")  # [r, in], [out, r]
        require(isinstance(layer, nn.Linear) and len(down) == config["r"])
        layer.weight.addmm_(up, down, alpha=config["lora_alpha"] / config["r"])


class Unset(TorchFunctionMode):
    """New weights are left as they are: others take their place, and to set them on `meta` torch imports sympy, 1 s."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})
