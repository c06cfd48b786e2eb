"""LoRA (arXiv:2106.09685) by peft: adding it to a model, and the module that is trained with it."""

import re
import warnings
from pathlib import Path

import torch
from torch import nn

from ..models.loading import base_id, unwrap
from ..models.tux_nano.connector import PREDICTION_HEAD_MODULES
from ..utils.errors import UsageError

# Linear layers that are trained whole (CLIP's projections) or not at all (the output layer, and the heads by which
# TuxNano's connector predicts karts: it has memorised those of `train`), never by LoRA.
LORA_EXCLUDED_MODULES = {"lm_head", "vision_projection", "text_projection", "key_value"} | PREDICTION_HEAD_MODULES


def add_lora(model: nn.Module, rank: int, base: str, exclude: str | None = None) -> nn.Module:
    """Return a PeftModel with LoRA on the linear layers of encoders and connector, except in `exclude`."""
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(names - LORA_EXCLUDED_MODULES),
        exclude_modules=exclude and rf"{re.escape(exclude)}\..*",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft and transformers about each other
        peft_model = get_peft_model(model, config)
    config.base_model_name_or_path = base_id(base)
    return peft_model


class PeftTrainingModule(nn.Module):
    """A PeftModel in training; subclasses have a `forward` that returns a loss."""

    def __init__(self, peft: nn.Module):
        super().__init__()
        self.peft = peft

    @property
    def base(self) -> nn.Module:
        """The model inside the PEFT wrapper."""
        return unwrap(self.peft)

    def enable_gradient_checkpointing(self) -> None:
        """Let transformers' models compute activations again in the backward pass, instead of saving them.

        Raises:
            UsageError: the base is not one of transformers' models.
        """
        for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # the second: transformers 4
            parts = [getattr(part, name) for part in (self.base, *self.base.children()) if hasattr(part, name)]
            for enable in parts:
                enable({"use_reentrant": False})
            if parts:
                return
        raise UsageError("--gradient-checkpointing", "TuxNano has none", "leave it out: TuxNano needs little memory")

    def save_adapter(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the PEFT folder, its weights in `dtype`."""
        weights = {name: weight.to(dtype) for name, weight in self.peft.state_dict().items() if "lora_" in name}
        self.peft.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's model card, which is empty

    def load_adapter(self, folder: str | Path) -> None:
        """Read what `save_adapter` wrote into the present weights."""
        from peft.utils import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self.peft, load_peft_weights(str(folder), device="cpu"))
