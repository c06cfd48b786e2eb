"""Bases and checkpoints: how a base is loaded, how LoRA is added to it, and how adapters are written and read.

A checkpoint is a PEFT folder: `adapter_config.json`, which names its base, and `adapter_model.safetensors`.
No code from a checkpoint ever runs.
"""

import contextlib
import warnings
from collections.abc import Iterator
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
    processor = load_processor(base)
    return load_model(base), processor


def load_model(base: str = EMBEDDED_BASE) -> nn.Module:
    """The model alone, in eval mode.

    Raises:
        InputError: see `load_base`.
    """
    device = pick_device()
    with _blaming(base, "not a loadable base", "name a folder or a hub model that is there"):
        model = AutoModelForImageTextToText.from_pretrained(
            resolve_base(base), dtype=pick_dtype(device), attn_implementation="sdpa", use_safetensors=True
        )
    return model.to(device).eval()


def load_processor(base: str = EMBEDDED_BASE) -> "AutoProcessor":
    """Tokenizer, chat template and image processor of a base, padding on the left as generation needs it.

    Raises:
        InputError: neither a readable folder nor a hub name that can be reached.
    """
    with _blaming(base, "not a loadable base", "name a folder or a hub model that is there"):
        # no splitting and no blow-up: an image is resized once, to what the vision tower takes
        processor = AutoProcessor.from_pretrained(resolve_base(base), do_image_splitting=False, do_resize=False)
    processor.tokenizer.padding_side = "left"
    return processor


@contextlib.contextmanager
def _blaming(path: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Quiet libraries, and whatever they raise (each has errors of its own) as one line about `path`."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(path, f"{problem} ({reason})", remedy) from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


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


def load_adapter(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """`model` with a PEFT folder's LoRA weights.

    Raises:
        InputError: the weights are missing, broken, or of another base.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    with _blaming(checkpoint, "not an adapter for this base", "train again on this base, or use the adapter's own"):
        peft_model = PeftModel.from_pretrained(model, str(checkpoint))
        # peft only warns of layers without a weight, and passes over weights without a layer
        there = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        differ = {name for name in there.keys() ^ load_peft_weights(str(checkpoint), device="cpu") if "lora_" in name}
        if differ:
            raise ValueError(f"{len(differ)} weights of one are not in the other, e.g. {min(differ)}")
        return peft_model


def add_lora(model: nn.Module, rank: int, base: str) -> nn.Module:
    """A PeftModel: LoRA on every linear layer of the encoders and the connector."""
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=sorted(names - WITHOUT_LORA))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft and transformers about each other
        peft_model = get_peft_model(model, config)
    config.base_model_name_or_path = portable_base(base)
    return peft_model


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of a possible PEFT wrapper; its layers hold the LoRA weights."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def checkpoint_folder(name: str | Path) -> Path:
    """A checkpoint's folder: one of the package's, else a path."""
    inside = Path(__file__).parent / name
    return inside if inside.exists() else Path(name)


class Adapted(nn.Module):
    """What is trained: a PeftModel, in a subclass whose `forward` gives a loss."""

    def __init__(self, peft: nn.Module):
        super().__init__()
        self.peft = peft

    @property
    def base(self) -> nn.Module:
        """The model inside the PEFT wrapper."""
        return unwrap(self.peft)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the PEFT folder."""
        self.peft.save_pretrained(str(folder), save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's model card, which is empty

    def load_adapter(self, folder: str | Path) -> None:
        """Read what `save_adapter` wrote into the present weights."""
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self.peft, load_peft_weights(str(folder), device="cpu"))
