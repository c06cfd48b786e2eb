"""Bases and checkpoints: how a base is loaded, how LoRA is added to it, and how adapters are written and read.

A checkpoint is a PEFT folder: `adapter_config.json`, which names its base, and `adapter_model.safetensors`.
No code from a checkpoint ever runs.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from . import nano_model
from .errors import InputError, read_json

EMBEDDED_BASE = str(Path(__file__).parent / "tux_nano")
# Linear layers that are trained whole (CLIP's projections) or not at all (the language head), never by LoRA.
WITHOUT_LORA = {"lm_head", "vision_projection", "text_projection", "key_value"}


def pick_device() -> torch.device:
    """The fastest device that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast; on CPUs and Apple's GPUs it is far slower than float32, or not there."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def resolve_base(base: str) -> str:
    """A base's folder or hub name; the embedded one's name stands for its folder, wherever that lies now."""
    return EMBEDDED_BASE if Path(base).name == "tux_nano" and not Path(base).is_dir() else base


def portable_base(base: str) -> str:
    """The name to write into a checkpoint: the embedded base's folder has another path on each machine."""
    return "tux_nano" if Path(base).resolve() == Path(EMBEDDED_BASE).resolve() else base


def load_base(base: str = EMBEDDED_BASE) -> tuple[nn.Module, "AutoProcessor"]:
    """(model, processor) of an Idefics3 checkpoint, on the best device. No code of a checkpoint is run.

    Raises:
        InputError: neither a readable folder nor a hub name that can be reached.
    """
    device, name = pick_device(), resolve_base(base)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # no splitting and no blow-up: an image is resized once, to what the vision tower takes
        processor = AutoProcessor.from_pretrained(name, do_image_splitting=False, do_resize=False)
        model = AutoModelForImageTextToText.from_pretrained(
            name, dtype=pick_dtype(device), attn_implementation="sdpa", use_safetensors=True
        )
    except Exception as error:  # transformers raises all sorts; whatever it is, the base is at fault
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(base, f"not a loadable base ({reason})", "name a folder or a hub model that is there") from None
    finally:
        logging.set_verbosity(verbosity)
    processor.tokenizer.padding_side = "left"
    return model.to(device).eval(), processor


def adapter_base(checkpoint: str | Path) -> str:
    """The base that a PEFT folder was trained on.

    Raises:
        InputError: no PEFT folder.
    """
    file = Path(checkpoint) / "adapter_config.json"
    config = read_json(file)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str):
        raise InputError(file, "names no base_model_name_or_path", "train again, or name the base in it")
    return base


def load_adapter(model: nn.Module, checkpoint: str | Path, is_trainable: bool = False) -> nn.Module:
    """`model` with a PEFT folder's LoRA weights.

    Raises:
        InputError: the weights are missing, broken, or of another base.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(checkpoint), is_trainable=is_trainable)
    except Exception as error:  # peft, safetensors and torch each raise their own
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        remedy = "train again on this base, or pass the checkpoint's own"
        raise InputError(checkpoint, f"not an adapter for this base ({reason})", remedy) from None


def add_lora(model: nn.Module, rank: int, base: str) -> nn.Module:
    """A PeftModel: LoRA on every linear layer of the encoders and the connector."""
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(names - WITHOUT_LORA))
    peft_model = get_peft_model(model, config)
    config.base_model_name_or_path = portable_base(base)
    return peft_model


class Adapted(nn.Module):
    """What is trained: a PeftModel, in a subclass whose `forward` gives a loss."""

    def __init__(self, peft: nn.Module):
        super().__init__()
        self.peft = peft

    @property
    def base(self) -> nn.Module:
        """The model inside the PEFT wrapper; its layers hold the LoRA weights."""
        return self.peft.get_base_model()

    def save_adapter(self, folder: str | Path) -> None:
        """Write the PEFT folder."""
        self.peft.save_pretrained(str(folder), save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's model card, which is empty

    def load_adapter(self, folder: str | Path) -> None:
        """Read what `save_adapter` wrote into the present weights."""
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self.peft, load_peft_weights(str(folder), device="cpu"))
