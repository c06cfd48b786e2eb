"""TuxNano's sizes, as `config.json` in its folder has them."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ...utils.errors import InputError
from ...utils.io import read_json, write_json

CONFIG_FILE = "config.json"
MODEL_TYPE = "tux_nano"
RETRIEVE = "restore the folder, or train on another --base"


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder.

    Args:
        channels: of the residual stages at strides 2, 4, 8 and 16.
        blocks: residual blocks of each stage.
        foveal_channels: of the foveal branch's stages at strides 2, 4 and 8.
        foveal_blocks: residual blocks of each of them.
        hidden_size: width of the tokens.
        num_layers: attention layers over all tokens.
        num_register_tokens: learned tokens for what concerns the whole image.
        image_height: pixels that an image's height is resized to.
        batch_norm: true while the encoder is pretrained; each is folded into its convolution for the export.
    """

    channels: tuple[int, ...] = (24, 48, 96, 192)
    blocks: tuple[int, ...] = (0, 1, 2, 2)
    foveal_channels: tuple[int, ...] = (32, 96, 192)
    foveal_blocks: tuple[int, ...] = (1, 2, 1)
    hidden_size: int = 192
    num_layers: int = 3
    num_heads: int = 6
    num_register_tokens: int = 2
    image_height: int = 100
    batch_norm: bool = False


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model, a Llama; `vocab_size` and the tokens are SmolVLM's."""

    vocab_size: int = 49280
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 6
    head_dim: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0


@dataclass(frozen=True)
class TuxNanoConfig:
    """All sizes of TuxNano.

    Args:
        num_counts: numbers of karts that are told apart, from 0; the last one stands for larger ones as well.
        image_token_id: id of `<image>`, which stands where image tokens are inserted.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    num_karts: int = 18
    num_tracks: int = 21
    num_counts: int = 10
    image_token_id: int = 49190

    @classmethod
    def load(cls, folder: Path) -> "TuxNanoConfig":
        """Read `config.json`.

        Raises:
            InputError: it is missing or broken, or has a value that is missing, unknown or not a size.
        """
        file = folder / CONFIG_FILE
        values = read_json(file)
        if not is_tux_nano_config(values):
            raise InputError(file, f"not a config of a {MODEL_TYPE} model", RETRIEVE)
        values = {name: value for name, value in values.items() if name != "model_type"}
        parts = {"vision": VisionConfig, "text": TextConfig}
        built = {name: _build(part, values.get(name), f"{file}, {name}") for name, part in parts.items()}
        return _build(cls, values | built, file)

    def save(self, folder: Path) -> None:
        """Write `config.json`."""
        write_json(folder / CONFIG_FILE, self.to_dict())

    def to_dict(self) -> dict:
        """Return the content of `config.json`; peft 0.16 reads a model's config with this method."""
        return {"model_type": MODEL_TYPE} | asdict(self)


def is_tux_nano_config(values) -> bool:
    """Return whether the content of a `config.json` is TuxNano's."""
    return isinstance(values, dict) and values.get("model_type") == MODEL_TYPE


def _build(part: type, values, where: str | Path):
    """Make one of the classes above of a JSON object; check that it has the types of the defaults."""
    names = {one.name for one in fields(part)}
    if not isinstance(values, dict) or values.keys() != names:
        differing = sorted(names ^ values.keys()) if isinstance(values, dict) else sorted(names)
        raise InputError(where, f"missing or unknown settings: {', '.join(map(str, differing))}", RETRIEVE)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    default = part()
    for name, value in values.items():
        expected = getattr(default, name)
        numbers = value if isinstance(value, tuple) else (value,)
        kind = int if isinstance(expected, tuple) else type(expected)
        right_type = isinstance(value, tuple) == isinstance(expected, tuple) and all(type(n) is kind for n in numbers)
        if not right_type or (kind in (int, float) and not all(0 <= n < 1e9 for n in numbers)):
            raise InputError(where, f"{name} is {value!r}, expected a value like {expected!r}", RETRIEVE)
    return part(**values)
