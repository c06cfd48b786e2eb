"""LoRA adapters of a PEFT folder: reading their config, and merging them into TuxNano's weights without peft."""

import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ..utils.errors import InputError, first_line, folder_not_found
from ..utils.io import read_json

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "train again on this base, or use the adapter's own"
# Settings that change what an adapter computes, beside its rank, alpha and modules; plain LoRA has none of them.
VARIANTS = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "fan_in_fan_out", "lora_bias", "modules_to_save"),
    *("rank_pattern", "alpha_pattern", "layer_replication", "layers_to_transform", "trainable_token_indices"),
    *("target_parameters", "arrow_config", "velora_config", "alora_invocation_tokens", "kasa_config"),
)


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


def read_lora_config(checkpoint: str | Path) -> dict:
    """Read an `adapter_config.json` of LoRA.

    Raises:
        ValueError: not LoRA, or a higher rank than its weights have: memory would be allocated for it.
    """
    config = read_json(Path(checkpoint) / ADAPTER_CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{ADAPTER_CONFIG} is not one of LoRA")
    with safe_open(Path(checkpoint) / ADAPTER_WEIGHTS, "pt") as weights:
        names = [name for name in weights.keys() if "lora_A." in name or "lora_embedding_A" in name]  # noqa: SIM118
        max_rank = max((weights.get_slice(name).get_shape()[0] for name in names), default=0)
    claimed = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if claimed > max_rank:
        raise ValueError(f"{ADAPTER_CONFIG} claims rank {claimed}, its weights have {max_rank}")
    return config


@torch.no_grad()
def merge_lora(model: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Add a PEFT folder's LoRA to the linear layers that it names: W + B A alpha / r (arXiv:2106.09685).

    Raises:
        InputError: a file is missing or broken, or the adapter is of another base, or not plain LoRA.
    """
    try:
        config = read_lora_config(checkpoint)
        variants = [name for name in VARIANTS if config.get(name)]
        if variants or config.get("bias", "none") != "none":
            raise ValueError(f"only plain LoRA can be merged, not {', '.join(variants) or 'a trained bias'}")
        targets, excluded = config["target_modules"], config.get("exclude_modules")
        layers = {
            name: module
            for name, module in model.named_modules()
            if name.rsplit(".", 1)[-1] in targets and not (excluded and re.fullmatch(excluded, name))
        }
        weights, prefix = load_file(Path(checkpoint) / ADAPTER_WEIGHTS), "base_model.model."
        differing = weights.keys() ^ {f"{prefix}{name}.lora_{half}.weight" for name in layers for half in "AB"}
        if differing:
            raise ValueError(f"{len(differing)} weights are in only one of adapter and base, e.g. {min(differing)}")
        for name, layer in layers.items():
            down, up = (weights[f"{prefix}{name}.lora_{half}.weight"].float() for half in "AB")  # [r, in], [out, r]
            layer.weight.addmm_(
                up.to(layer.weight.device), down.to(layer.weight.device), alpha=config["lora_alpha"] / config["r"]
            )
    except InputError:
        raise
    except Exception as error:  # safetensors and torch have errors of their own, and a broken config makes any
        raise InputError(checkpoint, f"not an adapter of this base ({first_line(error)})", REMEDY) from None
    return model
