"""LoRA adapters of a PEFT folder: reading their config, and merging them into TuxNano's weights without peft."""

import math
import re
from collections.abc import Set
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ..utils.errors import InputError, first_line, folder_not_found
from ..utils.io import read_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADDITIONAL_WEIGHTS = "additional_weights.pt"  # a CLIP's, outside of the two encoders
MODULES = {"vlm": "finetune", "clip": "clip"}  # of `homework`: what trains and tests each part
REMEDY = "train again on this base, or use the adapter's own"
# Settings that plain LoRA has, or that change only how it is trained; a true value of any other one changes what an
# adapter computes.
PLAIN_SETTINGS = {
    *("peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "bias", "init_lora_weights"),
    *("lora_dropout", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("auto_mapping", "auto_map", "megatron_config", "megatron_core", "qalora_group_size", "layers_pattern"),
}
PLAIN_INITIALIZATIONS = (True, False, "gaussian")  # others change the base's weights too


def is_adapter(checkpoint: str | Path) -> bool:
    """Return whether a folder is a PEFT folder."""
    return (Path(checkpoint) / ADAPTER_CONFIG).exists()


def read_adapter_base(checkpoint: str | Path) -> str:
    """Return the base that a PEFT folder was trained on.

    Raises:
        InputError: not a PEFT folder.
    """
    file = Path(checkpoint) / ADAPTER_CONFIG
    if not Path(checkpoint).is_dir():
        raise folder_not_found(Path(checkpoint), "no such checkpoint", "train one")
    if not file.exists():
        raise InputError(checkpoint, f"not an adapter: it has no {ADAPTER_CONFIG}", "name the folder of one")
    config = read_json(file)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str):
        raise InputError(file, "has no base_model_name_or_path", "train again, or name the base in it")
    return base


def part_of(checkpoint: str | Path) -> str:
    """Return which part a PEFT folder is of, vlm or clip."""
    return "clip" if (Path(checkpoint) / ADDITIONAL_WEIGHTS).exists() else "vlm"


def check_is_part(checkpoint: str | Path, part: str) -> None:
    """Check that a PEFT folder is one of the `part`, vlm or clip.

    Raises:
        InputError: it is the other's.
    """
    found = part_of(checkpoint)
    if found != part:
        names = {"vlm": f"a VLM's checkpoint (no {ADDITIONAL_WEIGHTS})", "clip": "a CLIP's checkpoint"}
        problem = f"{names[found]}, expected one of a {'VLM' if part == 'vlm' else 'CLIP'}"
        command = f"`python -m homework.{MODULES[found]} test {checkpoint}`"
        raise InputError(checkpoint, problem, f"name another, or run {command}")


def read_lora_config(checkpoint: str | Path) -> dict:
    """Read an `adapter_config.json` of LoRA.

    Raises:
        ValueError: not LoRA, or not a rank, or a higher one than its weights have: memory would be allocated for it.
    """
    config = read_json(Path(checkpoint) / ADAPTER_CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{ADAPTER_CONFIG} is not one of LoRA")
    with safe_open(Path(checkpoint) / ADAPTER_WEIGHTS, "pt") as weights:
        names = [name for name in weights.keys() if "lora_A." in name or "lora_embedding_A" in name]  # noqa: SIM118
        max_rank = max((weights.get_slice(name).get_shape()[0] for name in names), default=0)
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise ValueError(f"{ADAPTER_CONFIG} has ranks {ranks}, expected integers above 0")
    if max(ranks) > max_rank:
        raise ValueError(f"{ADAPTER_CONFIG} claims rank {max(ranks)}, its weights have {max_rank}")
    return config


@torch.no_grad()
def merge_lora(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Add a PEFT folder's LoRA to the linear layers that it names: W + B A alpha / r (arXiv:2106.09685).

    Raises:
        InputError: a file is missing or broken, or the adapter is of another base, or not plain LoRA; the model is
            unchanged then.
    """
    try:
        config = read_lora_config(checkpoint)
        _check_is_plain(config)
        suffixes, excluded = tuple(f".{name}" for name in config["target_modules"]), config.get("exclude_modules")
        layers = {  # that peft would select
            name: module
            for name, module in model.named_modules()
            if f".{name}".endswith(suffixes) and not (excluded and re.fullmatch(excluded, name))
        }
        rank = config["r"]
        weights, prefix = load_file(Path(checkpoint) / ADAPTER_WEIGHTS), "base_model.model."
        expected = {f"{prefix}{name}.lora_A.weight": (rank, layer.weight.shape[-1]) for name, layer in layers.items()}
        expected |= {f"{prefix}{name}.lora_B.weight": (layer.weight.shape[0], rank) for name, layer in layers.items()}
        check_same_weights(weights.keys() ^ expected.keys())
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(f"{name} has shape {tuple(weights[name].shape)}, expected {shape}")
        for name, layer in layers.items():
            down, up = (weights[f"{prefix}{name}.lora_{half}.weight"].to(layer.weight) for half in "AB")
            layer.weight.addmm_(up, down, alpha=config["lora_alpha"] / rank)  # [out, r] @ [r, in]
    except InputError:
        raise
    except Exception as error:  # safetensors and torch have errors of their own, and a broken config makes any
        raise InputError(checkpoint, f"not an adapter of this base ({first_line(error)})", REMEDY) from None
    return model


def check_same_weights(differing: Set[str]) -> None:
    """Check that no weight is in only one of adapter and base; `differing` names those that are."""
    if differing:
        raise ValueError(f"{len(differing)} weights are in only one of adapter and base, e.g. {min(differing)}")


def _check_is_plain(config: dict) -> None:
    """Check that an adapter is plain LoRA, so that `merge_lora` computes what peft would."""
    variants = [name for name, value in config.items() if value and name not in PLAIN_SETTINGS]
    if config.get("bias", "none") != "none":
        variants.append("a trained bias")
    if config.get("init_lora_weights", True) not in PLAIN_INITIALIZATIONS:
        variants.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if variants:
        raise ValueError(f"only plain LoRA can be merged, not {', '.join(variants)}")
    alpha, targets, excluded = (config.get(name) for name in ("lora_alpha", "target_modules", "exclude_modules"))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise ValueError(f"lora_alpha is {alpha!r}, expected a number")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"target_modules is {targets!r}, expected a list of names")
    if not isinstance(excluded, str | None):
        raise ValueError(f"exclude_modules is {excluded!r}, expected a regular expression")
