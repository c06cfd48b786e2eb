"""Add LoRA to a model."""

import warnings
from pathlib import Path

from torch import nn

from ..models.loading import base_id, unwrap
from ..models.tux_nano.connector import PREDICTION_HEAD_MODULES

# Linear layers that are trained whole (CLIP's projections) or not at all (the language head, and those
# by which the embedded base's connector recognises: of `train` it knows every kart by heart), never by LoRA.
LORA_EXCLUDED_MODULES = {"lm_head", "vision_projection", "text_projection", "key_value"} | PREDICTION_HEAD_MODULES


def add_lora(model: nn.Module, rank: int, base: str, exclude: str | None = None) -> nn.Module:
    """A PeftModel: LoRA on every linear layer of the encoders and the connector.

    Args:
        except_for: a module of the model that gets none.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(names - LORA_EXCLUDED_MODULES),
        exclude_modules=exclude and rf"{exclude}\..*",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft and transformers about each other
        peft_model = get_peft_model(model, config)
    config.base_model_name_or_path = base_id(base)
    return peft_model


class PeftTrainingModule(nn.Module):
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
