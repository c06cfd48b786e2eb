"""Bases and checkpoints: how a base is loaded, how LoRA is added to it, and how adapters are written and read.

A checkpoint is a PEFT folder: `adapter_config.json`, which names its base, and `adapter_model.safetensors`.
No code from a checkpoint ever runs.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from ..utils.errors import InputError, first_line, folder_not_found
from ..utils.io import read_json
from .tux_nano import model as nano_quick

if TYPE_CHECKING:
    from transformers import ProcessorMixin

DEFAULT_BASE = str(Path(__file__).parents[1] / "weights" / "tux_nano")

DEPTHS = {"num_hidden_layers", "blocks", "fovea_blocks"}  # names of a config's numbers of layers
MAX_DEPTH = 1000  # the most of them that is read


def pick_device() -> torch.device:
    """The fastest device that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast; on CPUs, older GPUs and Apple's it is far slower than float32, or not there."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def resolve_base(base: str) -> str:
    """A base's folder or hub name; the embedded one's name stands for its folder, wherever that lies now.

    Raises:
        InputError: neither can be meant.
    """
    if base == "tux_nano" or (Path(base).name == "tux_nano" and not os.path.isdir(base)):
        return DEFAULT_BASE
    # a name of the hub has an owner, for whom there is no folder here
    if not os.path.isdir(base) and ("/" not in base or os.path.isdir(os.path.dirname(base))):
        raise folder_not_found(
            Path(base), "no such base or checkpoint", "name a folder, or a model of the hub as OWNER/NAME"
        )
    return base


def base_id(base: str) -> str:
    """The name to write into a checkpoint: the embedded base's folder has another path on each machine."""
    return "tux_nano" if Path(base).resolve() == Path(DEFAULT_BASE).resolve() else base


def _transformers() -> ModuleType:
    """transformers, which knows the embedded architecture then; imported here, since it takes seconds."""
    import transformers

    from .tux_nano import modeling_hf as nano_model  # noqa: F401 - which registers it

    return transformers


def load_quickly(
    base: str, adapter: str | Path | None = None, part: Callable[[nn.Module], nn.Module] = lambda model: model
) -> tuple[nn.Module, nano_quick.QuickProcessor] | None:
    """`nano_quick.load` by a base's name, on the best device; in float32 there too, lest LoRA be rounded away."""
    quick = nano_quick.load(resolve_base(base), adapter, part)
    return quick and (quick[0].to(pick_device()), quick[1])


def load_for_inference(checkpoint: str | Path) -> tuple[nn.Module, "nano_quick.QuickProcessor | ProcessorMixin"]:
    """(model, processor) of a base or a PEFT folder, on the best device; without transformers where that can be.

    Raises:
        InputError: see `load_hf`.
    """
    return load_quickly(*_base_and_adapter(checkpoint)) or load_hf(checkpoint)


def load_hf(checkpoint: str | Path) -> tuple[nn.Module, "ProcessorMixin"]:
    """As `load_for_inference`, of any Idefics3 model, with transformers and peft.

    Raises:
        InputError: see `load_base` and `load_adapter`.
    """
    base, adapter = _base_and_adapter(checkpoint)
    model, processor = load_base(base)
    return (load_adapter(model, adapter).eval() if adapter else model), processor


def _base_and_adapter(checkpoint: str | Path) -> tuple[str, str | Path | None]:
    """A PEFT folder's base and itself, or a base alone."""
    if (Path(checkpoint) / "adapter_config.json").exists():
        return adapter_base(checkpoint), checkpoint
    return str(checkpoint), None


def load_base(base: str = DEFAULT_BASE) -> tuple[nn.Module, "ProcessorMixin"]:
    """(model, processor) of an Idefics3 checkpoint, on the best device. No code of a checkpoint is run.

    Raises:
        InputError: neither a readable folder nor a hub name that can be reached.
    """
    processor = load_processor(base)
    return load_model(base), processor


def load_model(base: str = DEFAULT_BASE) -> nn.Module:
    """The model alone, in eval mode.

    Raises:
        InputError: see `load_base`.
    """
    device = pick_device()
    with _errors_as_input_error(base, "not a loadable base", "name a folder or a hub model that is there"):
        place = resolve_base(base)
        # trust_remote_code: left out, transformers asks whoever sits there, and runs the code on a `y`
        transformers = _transformers()
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        config._attn_implementation = "sdpa"  # of its parts too: a config may name one from the hub, which is code
        _require_possible(place, config)
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            place, config=config, dtype=pick_dtype(device), use_safetensors=True, trust_remote_code=False
        )
    return model.to(device).eval()


def load_processor(base: str = DEFAULT_BASE) -> "ProcessorMixin":
    """Tokenizer, chat template and image processor of a base, padding on the left as generation needs it.

    Raises:
        InputError: neither a readable folder nor a hub name that can be reached.
    """
    from .prompts import PromptTokens  # which imports this module

    with _errors_as_input_error(base, "not a loadable base", "name a folder or a hub model that is there"):
        # no splitting and no blow-up: an image is resized once, to what the vision tower takes
        processor = _transformers().AutoProcessor.from_pretrained(
            resolve_base(base), do_image_splitting=False, do_resize=False, trust_remote_code=False
        )
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.eos_token is None or processor.tokenizer.pad_token is None:
            raise ValueError("its tokenizer has no end or no padding token")
        PromptTokens(processor)  # what is broken in it shows when it is used
    return processor


def _require_possible(place: str, config) -> None:
    """A config may claim any size, and transformers makes room for it before it compares it with the weights.

    Raises:
        ValueError: more layers, or more weights, than the folder's files can hold.
    """
    if not Path(place).is_dir():
        return  # a model of the hub
    if _deepest(config.to_dict()) > MAX_DEPTH:
        raise ValueError(f"its config claims more than {MAX_DEPTH} layers")
    size = sum(file.stat().st_size for file in Path(place).glob("*.safetensors"))
    with torch.device("meta"):  # where weights take no memory
        model = _transformers().AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    claimed = sum(parameter.numel() for parameter in model.parameters())
    if claimed > 2 * size:  # a weight takes a byte at least, and two that are tied are stored once
        raise ValueError(f"its config claims {claimed:,} weights, but the files of its weights have {size:,} bytes")


def _deepest(value, counts: bool = False) -> float:
    """The largest number of layers that a config, as a dict, tells."""
    if isinstance(value, dict):
        return max((_deepest(entry, counts or key in DEPTHS) for key, entry in value.items()), default=0)
    if isinstance(value, list | tuple):
        return max((_deepest(entry, counts) for entry in value), default=0)
    return value if counts and isinstance(value, int | float) else 0


@contextlib.contextmanager
def _errors_as_input_error(path: str | Path, problem: str, remedy: str) -> Iterator[None]:
    """Quiet libraries, and whatever they raise (each has errors of its own) as one line about `path`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(path, f"{problem} ({first_line(error)})", remedy) from None
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
    if not Path(checkpoint).is_dir():
        raise folder_not_found(Path(checkpoint), "no such checkpoint", "train one")
    if not file.exists():
        raise InputError(checkpoint, "no adapter: it has no adapter_config.json", "name the folder of one")
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

    with _errors_as_input_error(
        checkpoint, "not an adapter for this base", "train again on this base, or use the adapter's own"
    ):
        peft_model = PeftModel.from_pretrained(model, str(checkpoint), config=_lora_config(Path(checkpoint)))
        # peft only warns of layers without a weight, and passes over weights without a layer
        there = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
        differ = {name for name in there.keys() ^ load_peft_weights(str(checkpoint), device="cpu") if "lora_" in name}
        if differ:
            raise ValueError(f"{len(differ)} weights of one are not in the other, e.g. {min(differ)}")
        return peft_model


def _lora_config(checkpoint: Path):
    """An adapter's config, without what would run code: peft imports the module that `megatron_core` names.

    Raises:
        ValueError: it is of no LoRA, or claims a higher rank than the weights have: peft would make room for it.
    """
    from peft import PeftConfig

    values = read_json(checkpoint / "adapter_config.json")
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise ValueError("adapter_config.json is of no LoRA")
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if "lora_A." in name or "lora_embedding_A" in name]  # noqa: SIM118
        ranks = [weights.get_slice(name).get_shape()[0] for name in names]
    claimed = max([values["r"], *(values.get("rank_pattern") or {}).values()])
    if claimed > max(ranks, default=0):
        raise ValueError(f"adapter_config.json claims rank {claimed}, its weights have {max(ranks, default=0)}")
    return PeftConfig.from_peft_type(**values | {"megatron_config": None, "megatron_core": None, "auto_mapping": None})


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of a possible PEFT wrapper; its layers hold the LoRA weights."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def checkpoint_folder(name: str | Path) -> Path:
    """A checkpoint's folder: one of the package's, else a path."""
    inside = Path(__file__).parents[1] / "weights" / name
    return inside if inside.exists() else Path(name)
