"""The embedded base for answers without transformers and peft, whose imports take longer than all else of a start.

What is read here is what this package writes: a base of the embedded architecture, and LoRA on linear layers. All else
is left to transformers and peft, which load it, or say what is wrong with it.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .nano_connector import Readout, Recogniser
from .nano_text import KeyValues, TextModel
from .nano_vision import Hidden, Tower
from .preprocess import as_view, normalise

# What settings must be for the model and the processor here to be those that transformers would make of them.
MODEL = {"model_type": "tux_nano", "tie_word_embeddings": True}
TEXT = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
TOKENS = {
    "tokenizer_class": "TokenizersBackend",
    "eos_token": "<end_of_utterance>",
    "clean_up_tokenization_spaces": False,
}
IMAGES = {
    "image_processor_type": "TuxNanoImageProcessor",
    **dict.fromkeys(("do_rescale", "do_normalize", "do_convert_rgb"), True),
    **dict.fromkeys(("image_mean", "image_std"), [0.5] * 3),
    "rescale_factor": 1 / 255,
    "resample": Image.Resampling.LANCZOS,
}
# Of an adapter's settings those that are heeded, or that change no answer; any other must be off.
LORA = {"peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "init_lora_weights"}
OF_NO_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "task_type"),
}


class TuxNanoInner(nn.Module):
    """`TuxNanoModel` for answers: what the tower recognises takes the place of the image's tokens."""

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.image_token_id = config.image_token_id
        game = {name: getattr(config, name) for name in ("num_karts", "num_tracks", "num_counts")}
        vision, text = config.vision_config, config.text_config
        self.vision_model = Tower(vision)
        recogniser = Recogniser(vision.num_summary_tokens, vision.hidden_size, **game)
        self.connector = Readout(recogniser, text.hidden_size, **game)
        self.text_model = TextModel(text)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        past_key_values: KeyValues | None = None,
        use_cache: bool = False,
    ) -> Hidden:
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


class QuickTokenizer:
    """What prompts, answers and CLIP need of a tokenizer of transformers."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        self.backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.eos_token, self.pad_token_id = config["eos_token"], self.backend.token_to_id(config["pad_token"])
        _require(_holds(config, TOKENS) and self.pad_token_id is not None)
        self.backend.no_truncation()
        self.backend.no_padding()

    def __call__(self, text: str | list[str], add_special_tokens: bool = True, **padding) -> dict:
        """The `input_ids` of a text; of several, as tensors [n, s] padded on the right, with their `attention_mask`."""
        if isinstance(text, str):
            return {"input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids}
        rows = [encoding.ids for encoding in self.backend.encode_batch(text, add_special_tokens=add_special_tokens)]
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.pad_token_id] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of a token."""
        return self.backend.token_to_id(token)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of ids."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


class QuickProcessor:
    """What prompts and images need of a `TuxNanoProcessor`."""

    def __init__(self, folder: Path):
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # as transformers does

        config = json.loads((folder / "processor_config.json").read_bytes())
        _require(config["processor_class"] == "TuxNanoProcessor" and _holds(config["image_processor"], IMAGES))
        self.image_seq_len, self.tokenizer = config["image_seq_len"], QuickTokenizer(folder)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string((folder / "chat_template.jinja").read_text())

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool) -> str:
        """The text of a chat."""
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)

    def __call__(self, text: str, images: Sequence[Image.Image]) -> dict:
        """The `input_ids` of a text about one image, as a batch of one."""
        edge = "<fake_token_around_image>"  # of Idefics3's
        image = f"{edge}<global-img>{'<image>' * self.image_seq_len}{edge}"
        return {"input_ids": [self.tokenizer(text.replace("<image>", image))["input_ids"]]}

    def image_processor(self, images: Sequence[Sequence[Image.Image]], return_tensors: str) -> dict[str, Tensor]:
        """Lists of one image -> `pixel_values` [n, 1, 3, 100, 150]."""
        return {"pixel_values": normalise(np.stack([as_view(image) for (image,) in images]))[:, None]}


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
    from .packing import PromptTokens  # which imports the module that imports this

    try:
        vlm, processor = read_model(Path(base)), QuickProcessor(Path(base))
        image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
        expected = vlm.model.connector.slot.num_embeddings, vlm.model.image_token_id
        _require((processor.image_seq_len, image_token) == expected)
        PromptTokens(processor)  # what is broken in it shows when it is used
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
    config = json.loads((folder / "config.json").read_bytes())
    text, vision = config["text_config"], config["vision_config"]
    _require(_holds(config, MODEL) and _holds(text, TEXT))
    rope = text["rope_parameters"]
    _require(rope.keys() == {"rope_type", "rope_theta"} and rope["rope_type"] == "default" and rope["rope_theta"] > 0)
    weights = load_file(folder / "model.safetensors")
    depths = text["num_hidden_layers"], vision["num_hidden_layers"], *vision["blocks"], *vision["fovea_blocks"]
    _require(sum(depths) <= len(weights))  # which each layer has some of
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
    config = json.loads((folder / "adapter_config.json").read_bytes())
    _require(config["peft_type"] == "LORA" and config["init_lora_weights"] is True)
    others = (value for name, value in config.items() if name not in LORA | OF_NO_EFFECT)
    _require(all(not value or value == "none" for value in others))
    weights = load_file(folder / "adapter_model.safetensors")
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.rsplit(".", 1)[-1] in config["target_modules"]
        and not (config["exclude_modules"] and re.fullmatch(config["exclude_modules"], name))
    }
    prefix = "base_model.model."
    _require(weights.keys() == {f"{prefix}{name}.lora_{half}.weight" for name in layers for half in "AB"})
    for name, layer in layers.items():
        down, up = (weights[f"{prefix}{name}.lora_{half}.weight"].float() for half in "AB")  # [r, in], [out, r]
        _require(len(down) == config["r"])
        layer.weight += up @ down * (config["lora_alpha"] / config["r"])


class Unset(TorchFunctionMode):
    """New weights are left as they are, since others take their place."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


def _holds(settings: dict, expected: dict) -> bool:
    return all(settings[name] == value for name, value in expected.items())


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not for here")
