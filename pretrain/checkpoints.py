"""What the stages begin with: the tower's geometry, and what other stages saved."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig, TuxNanoVisionModel
from homework.utils.errors import InputError, first_line

from .dense_heads import DenseHeads
from .text_stage import TextStage
from .trainer import read_checkpoint

SAVED = Path(__file__).parent / "stage.safetensors"  # the tower as it was trained: with batch norms and heads
EMBEDDING = "model.model.text_model.embed_tokens.weight"
# of a text stage: what a dense stage taught, under the names that the model and the CLIP in it give it
TAUGHT = (
    "heads.",
    "model.model.vision_model.",
    "model.model.connector.recogniser.",
    "clip.vision_encoder.",
    "clip.recogniser.",
)
REMEDY = "git checkout pretrain/stage.safetensors"
VISION = TuxNanoVisionConfig(channels=(24, 48, 96, 192), num_hidden_layers=3, batch_norm=True)


class VisionStage(nn.Module):
    """The tower with its teaching heads."""

    def __init__(self, config: TuxNanoVisionConfig = VISION):
        super().__init__()
        self.tower = TuxNanoVisionModel(config).to(memory_format=torch.channels_last)
        self.heads = DenseHeads(config)


@torch.no_grad()
def begin_with(stage: nn.Module, file: Path) -> None:
    """Take over a saved tower and its heads; a fovea that it lacks begins anew, attention layers as the identity.

    Raises:
        InputError: not a saved stage, or one of other channels.
    """
    weights, tower = _saved_weights(file), stage.tower
    saved, heads = (
        {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}
        for part in ("tower.", "heads.")
    )
    own = stage.heads.state_dict()
    fitting = {name: weight for name, weight in heads.items() if name in own and weight.shape == own[name].shape}
    stage.heads.load_state_dict(fitting, strict=False)
    try:
        missing = tower.load_state_dict(saved, strict=False).missing_keys
    except RuntimeError as error:
        raise InputError(file, f"a tower of another geometry ({str(error).splitlines()[1].strip()})", REMEDY) from None
    new = {name.split(".")[1] for name in missing if name.startswith("layers.")}
    if len(new) == len(tower.layers) or not all(name.startswith(("layers.", "fovea")) for name in missing):
        raise InputError(file, f"no tower in it: {missing[0]} is missing", REMEDY)
    for number in map(int, new):
        for part in (tower.layers[number].proj, tower.layers[number].fc2):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)


def _saved_weights(file: Path) -> dict[str, torch.Tensor]:
    """A stage's weights, from the checkpoint of a run or as `export` saves them."""
    if file.suffix == ".pt":
        return read_checkpoint(file)["model"]
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(file, f"not a saved stage ({first_line(error)})", REMEDY) from None


def saved_vision(file: Path) -> VisionStage:
    """The tower and its heads, from the checkpoint of a run or as `export` saves them."""
    stage, weights = VisionStage(), _saved_weights(file)
    try:
        stage.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(file, f"not a saved stage ({first_line(error)})", REMEDY) from None
    return stage


def begin_text_with(stage: TextStage, file: Path) -> None:
    """Take over what another text stage learned; tower, heads, and what recognises by them are a dense stage's.

    Args:
        stage: what is to begin.
        file: the checkpoint text.pt of a run, or the folder of a base that `export` wrote; its CLIP begins anew.

    Raises:
        InputError: no checkpoint of a text stage of this geometry, or no base of it.
    """
    weights = _weights_of_base(stage, file) if file.is_dir() else read_checkpoint(file)["model"]
    weights = {name: weight for name, weight in weights.items() if not name.startswith(TAUGHT)}
    try:
        if stage.load_state_dict(weights, strict=False).unexpected_keys or not weights:
            raise RuntimeError("other weights")
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(file, f"not a checkpoint of this stage ({reason})", "name a run's text.pt") from None


def _weights_of_base(stage: TextStage, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an exported base by their names in the stage, with its small vocabulary."""
    try:
        saved = load_file(folder / "model.safetensors")
        weights = {f"model.{name}": weight.float() for name, weight in saved.items()}
        weights[EMBEDDING] = stage.vocabulary.shrink(weights[EMBEDDING])
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise InputError(
            folder, f"not an exported base ({first_line(error)})", "name homework/weights/tux_nano"
        ) from None
    return weights
