"""The vision encoder's architecture, and the weights that a stage is initialised from."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from homework.models.tux_nano.config import VisionConfig
from homework.models.tux_nano.vision import VisionEncoder
from homework.utils.errors import InputError

from .assemble import init_weights
from .dense_heads import DenseHeads, run_heads
from .text_stage import TextStage
from .trainer import errors_as_input_error, read_checkpoint

REMEDY = "run `git checkout pretrain/stage.safetensors`"
EMBEDDING_KEY = "model.language_model.embed_tokens.weight"
# weights of a text stage that the dense stage has trained, by their names in the model and in the CLIP
FROZEN_PREFIXES = (
    "heads.",
    "model.vision_encoder.",
    "model.connector.prediction_heads.",
    "clip.vision_encoder.",
    "clip.prediction_heads.",
)
VISION_CONFIG = VisionConfig(batch_norm=True)


class VisionStage(nn.Module):
    """The vision encoder and its pretraining heads."""

    def __init__(self, config: VisionConfig = VISION_CONFIG):
        super().__init__()
        self.vision_encoder = init_weights(VisionEncoder(config)).to(memory_format=torch.channels_last)
        self.heads = DenseHeads(config)

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Encode pixels [b, 3, h, w], and return (logits by name, tokens [b, s, d])."""
        return run_heads(self.vision_encoder, self.heads, pixels)


@torch.no_grad()
def load_vision_weights(stage: nn.Module, file: Path) -> None:
    """Initialise encoder and heads from a saved stage.

    A foveal branch that the file lacks keeps its random weights; added attention layers begin as the identity.
    """
    weights, encoder = _read_stage(file), stage.vision_encoder
    saved, heads = (
        {name.removeprefix(part): weight for name, weight in weights.items() if name.startswith(part)}
        for part in ("vision_encoder.", "heads.")
    )
    own = stage.heads.state_dict()
    fitting = {name: weight for name, weight in heads.items() if name in own and weight.shape == own[name].shape}
    stage.heads.load_state_dict(fitting, strict=False)
    with errors_as_input_error(file, "a vision encoder of other shapes", REMEDY):
        missing = encoder.load_state_dict(saved, strict=False).missing_keys
    new_layers = {name.split(".")[1] for name in missing if name.startswith("layers.")}
    if len(new_layers) == len(encoder.layers) or not all(name.startswith(("layers.", "foveal")) for name in missing):
        raise InputError(file, f"not a vision encoder: {missing[0]} is missing", REMEDY)
    for number in map(int, new_layers):
        for part in (encoder.layers[number].proj, encoder.layers[number].fc2):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)


def load_vision_stage(file: Path) -> VisionStage:
    """Load encoder and heads from a run's checkpoint, or from a file that `export` wrote."""
    stage, weights = VisionStage(), _read_stage(file)
    with errors_as_input_error(file, "not a saved stage", REMEDY):
        stage.load_state_dict(weights)
    return stage


def _read_stage(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".pt":
        return read_checkpoint(file)["model"]
    with errors_as_input_error(file, "not a saved stage", REMEDY):
        return load_file(file)


def load_text_weights(stage: TextStage, source: Path) -> None:
    """Initialise text model and connector from another text stage; what the dense stage has trained stays as it is.

    Args:
        stage: the stage to initialise.
        source: a run's checkpoint text.pt or read.pt, or the folder of an exported base, which holds no CLIP.
    """
    weights = _read_base(stage, source) if source.is_dir() else read_checkpoint(source)["model"]
    weights = {name: weight for name, weight in weights.items() if not name.startswith(FROZEN_PREFIXES)}
    with errors_as_input_error(source, remedy="give a run's text.pt"):
        if stage.load_state_dict(weights, strict=False).unexpected_keys or not weights:
            raise ValueError("other weights")


def _read_base(stage: TextStage, folder: Path) -> dict[str, Tensor]:
    """Read an exported base's weights by their names in the stage, with its compact vocabulary."""
    with errors_as_input_error(folder, "not an exported base", "give homework/weights/tux_nano"):
        weights = {f"model.{name}": w.float() for name, w in load_file(folder / "model.safetensors").items()}
        return weights | {EMBEDDING_KEY: stage.vocabulary.shrink(weights[EMBEDDING_KEY])}
