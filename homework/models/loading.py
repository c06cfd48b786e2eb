"""Load bases and checkpoints: TuxNano by our own code, SmolVLM and other Idefics3 models by transformers.

A checkpoint is a PEFT folder: `adapter_config.json`, which names its base, and `adapter_model.safetensors`. No code
from a checkpoint is run. Both kinds of models follow one protocol: `backbone(model)` maps ids, masks, positions,
pixels and a cache to hidden states as transformers' models do, and `output_embedding(model)` maps these to logits.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..utils.errors import folder_not_found
from ..utils.io import read_json
from . import idefics3
from .hub import hub_folder, is_hub_name
from .lora_weights import check_is_part, is_adapter, merge_lora, read_adapter_base
from .runs import RUNS, check_is_finished, is_unfinished
from .tux_nano.config import CONFIG_FILE, TuxNanoConfig, is_tux_nano_config
from .tux_nano.connector import num_image_tokens
from .tux_nano.language_model import LanguageModel
from .tux_nano.model import TuxNano
from .tux_nano.processor import TuxNanoProcessor

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    Processor = TuxNanoProcessor | ProcessorMixin

WEIGHTS = Path(__file__).parents[1] / "weights"
DEFAULT_BASE = str(WEIGHTS / "tux_nano")


def pick_device() -> torch.device:
    """Return the fastest device there is; each process of a launcher has its own GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on GPUs that compute it fast; elsewhere it is far slower than float32, or missing."""
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_fast else torch.float32


def pick_autocast_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to train in: float16 on GPUs that compute it fast, but not bfloat16; else that of the weights.

    GPUs before compute capability 7.0 (V100, T4) have no tensor cores, and most of them compute float16 slowly.
    """
    dtype = pick_dtype(device)
    if device.type == "cuda" and dtype == torch.float32 and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.float16
    return dtype


def default_checkpoint(part: str) -> Path:
    """Return the folder of the submitted `vlm` or `clip`: in a bundle what was packed, else what is shipped."""
    return WEIGHTS / part


def checkpoint_folder(name: str | Path) -> Path:
    """Return a checkpoint's folder: `vlm` and `clip` are the submitted ones, others a path or the name of a run."""
    if str(name) in ("vlm", "clip"):
        return default_checkpoint(str(name))
    is_known, run = str(name) == "tux_nano" or Path(name).exists(), RUNS / name
    return run if not is_known and (is_adapter(run) or is_unfinished(run)) else Path(name)


def resolve_base(base: str) -> str:
    """Return a base's absolute folder, or its hub name; TuxNano's name stands for its folder, wherever that lies now.

    A name of the form OWNER/NAME is the hub's unless that folder holds a config.json; `./OWNER/NAME` and `runs/NAME`
    are folders.

    Raises:
        InputError: it can be neither.
    """
    folder = Path(base).expanduser()
    if base == "tux_nano" or (folder.name == "tux_nano" and not folder.is_dir()):
        return DEFAULT_BASE
    if is_hub_name(base) and not (folder / CONFIG_FILE).is_file():
        return base
    if not folder.is_dir():
        remedy = "name a folder, or a model of the hub as OWNER/NAME"
        raise folder_not_found(folder, "no such base or checkpoint", remedy)
    return str(folder.resolve())


def base_id(base: str) -> str:
    """Return the name to write into a checkpoint: TuxNano's folder has another path on each machine."""
    base = resolve_base(base)
    return "tux_nano" if Path(base).resolve() == Path(DEFAULT_BASE).resolve() else base


def base_folder(base: str) -> Path:
    """Return the folder that holds a base's files; raises what `resolve_base` and `hub_folder` do."""
    base = resolve_base(base)
    return Path(base) if Path(base).is_absolute() else hub_folder(base)


def is_tux_nano(folder: Path) -> bool:
    """Return whether a base's folder is of TuxNano's architecture."""
    file = folder / CONFIG_FILE
    return file.is_file() and is_tux_nano_config(read_json(file))


def load_base(base: str = DEFAULT_BASE) -> tuple[nn.Module, "Processor"]:
    """Load (model, processor) of a base on the best device, in eval mode.

    Raises:
        InputError: neither a readable folder nor a hub name that can be reached.
    """
    return load_model(base), load_processor(base)


def load_model(base: str = DEFAULT_BASE) -> nn.Module:
    """Load a base's model on the best device, in eval mode. TuxNano is in float32 everywhere."""
    folder, device = base_folder(base), pick_device()
    if is_tux_nano(folder):
        return TuxNano.load(folder).to(device)
    return idefics3.load_model(str(folder), device, pick_dtype(device))


def load_processor(base: str = DEFAULT_BASE) -> "Processor":
    """Load a base's tokenizer, chat template and image processor."""
    folder = base_folder(base)
    if is_tux_nano(folder):
        return TuxNanoProcessor(folder, num_image_tokens(TuxNanoConfig.load(folder).num_karts))
    return idefics3.load_processor(str(folder))


def load_for_inference(checkpoint: str | Path) -> tuple[nn.Module, "Processor"]:
    """Load (model, processor) of a base or of a VLM's PEFT folder, on the best device, in eval mode.

    Raises:
        InputError: neither, or of a run that is not finished.
    """
    if not is_adapter(checkpoint):
        check_is_finished(checkpoint, "vlm")
        return load_base(str(checkpoint))
    check_is_part(checkpoint, "vlm")
    model, processor = load_base(read_adapter_base(checkpoint))
    return add_adapter(model, checkpoint), processor


def add_adapter(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Give a model, or a CLIP on its encoders, a PEFT folder's LoRA: merged where TuxNano is the base, else by peft."""
    if isinstance(model, TuxNano) or isinstance(getattr(model, "text_encoder", None), LanguageModel):
        return merge_lora(model, checkpoint).eval()
    return idefics3.load_adapter(model, checkpoint).eval()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a PEFT wrapper, if there is one; its layers hold the LoRA weights."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: nn.Module) -> nn.Module:
    """Return the part of a model, wrapped by peft or not, that gives hidden states."""
    model = unwrap(model)
    return model if isinstance(model, TuxNano) else model.model


def output_embedding(model: nn.Module) -> Tensor:
    """Return the weight of the output layer, [tokens, d]."""
    return unwrap(model).get_output_embeddings().weight
