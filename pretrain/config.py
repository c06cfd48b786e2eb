"""The settings of a run: every number that determines the weights, read from TOML files."""

import functools
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from homework.models.tux_nano.config import TextConfig, VisionConfig
from homework.utils.errors import InputError, first_line, suggest_name

CPU_CONFIG, GPU_CONFIG = (Path(__file__).parent / name for name in ("cpu.toml", "gpu.toml"))
STAGES = ("fovea", "vision", "read", "text")  # in this order
SHAPES = ("cells", "boxes")


@dataclass(frozen=True)
class PartsConfig:
    """Switch parts of the model off to measure what each brings; only a model with all of them is exported.

    Args:
        register_tokens: without, the image heads read the mean of all cells.
        foveal_branch: without, there are no foveal cells, and no stage `fovea`.
        cell_heads: without, nothing is learned per cell, and nothing is fused.
        name_matching_head: whether an attention head of the text model is initialised to match names.
        fusion: of image and cell logits. This and what follows acts at inference only.
        poisson_binomial: whether counts are fused with those of the karts present.
        flip_tta: whether the logits of a view and of its mirror image are averaged.
        zero_count_bias: whether the logit of a count of 0 is lowered.
    """

    register_tokens: bool
    foveal_branch: bool
    cell_heads: bool
    name_matching_head: bool
    fusion: bool
    poisson_binomial: bool
    flip_tta: bool
    zero_count_bias: bool


ALL_PARTS = PartsConfig(*[True] * 8)
TRAINED_PARTS = ("register_tokens", "foveal_branch", "cell_heads", "name_matching_head")


@dataclass(frozen=True)
class SourceConfig:
    """A folder of the data.

    Args:
        weight: how often its views are drawn in training, relative to the others'; 0: never, it is for evaluation.
        frames: number of frames to draw with the game; 0: the folder has to be there.
        seed, preset: of drawing, see `python -m supertux render`; preset `sample`: the frames are those in `sample/`.
    """

    weight: float
    frames: int
    seed: int
    preset: str


@dataclass(frozen=True)
class AugmentConfig:
    """Set how views are sampled and how often each augmentation is applied. Sizes are of a box's shorter side.

    Args:
        hardness_weight: growth of a view's probability per kart beside the first and per far kart.
        max_hardness: karts beside the first and far karts are counted up to this many.
        zoom_prob, max_zoom: of a view: a random part of it becomes the whole view.
        swap_ego_prob: of a view: another view's kart takes the place of its ego kart.
        add_karts_prob, max_added: of a view: up to so many karts are added.
        max_added_px: karts are added in the boxes of other views' karts below this size.
        border_prob: of an added kart: the view's left or right border cuts it.
        occluded_prob: of an added kart: it stands in the columns of the nearest kart, and behind it.
        min_visible: share of an added kart that nearer karts may not cover.
        center_crop_prob: of a batch: only the columns of the grader's CLIP crop are shown.
        window_karts: karts that are tried in a window of the fovea's size.
        contrast, gain, offset, noise: of colours: deviation from 1 of the first two, largest value of the others.
    """

    hardness_weight: float
    max_hardness: int
    zoom_prob: float
    max_zoom: float
    swap_ego_prob: float
    add_karts_prob: float
    max_added: int
    max_added_px: int
    border_prob: float
    occluded_prob: float
    min_visible: float
    center_crop_prob: float
    flip_prob: float
    window_karts: int
    contrast: float
    gain: float
    offset: float
    noise: float

    def as_rendered(self) -> "AugmentConfig":
        """Return the settings of the last steps: as many karts, and as sharp, as the game shows."""
        return replace(self, zoom_prob=0.0, add_karts_prob=0.0)


@dataclass(frozen=True)
class WordsConfig:
    """Set what the text model reads.

    Args:
        common_tokens: so many tokens, the first that the tokenizer has merged, get a row of their own.
        questions: per view, by type.
        synthetic_scenes: per step.
    """

    common_tokens: int
    questions: dict[str, int]
    synthetic_scenes: int


@dataclass(frozen=True)
class StageConfig:
    """Set how a stage trains.

    Args:
        parts: `run --stage vision-2` trains the second of so many parts; they share one checkpoint and schedule.
        warmup: steps; cooldown: share of the steps, the last ones; as_rendered: share of them without added karts.
        ema_decay: of the moving average of the weights, which is what is evaluated, and what the stage ends with.
        reference_s: seconds of a step on two cores, from which the remaining time is estimated at first.
    """

    steps: int
    parts: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: int
    cooldown: float
    as_rendered: float
    ema_decay: float
    reference_s: float


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Args:
        shape: of the vision encoder: `cells` (attention over cells) or `boxes` (a detector).
        held_out_period: every so many-th game state of a folder is held out of training.
        workers: processes that prepare batches; 0: none beside the one that trains.
    """

    seed: int
    shape: str
    held_out_period: int
    workers: int
    vision: VisionConfig
    text: TextConfig
    parts: PartsConfig
    sources: dict[str, SourceConfig]
    augment: AugmentConfig
    words: WordsConfig
    stages: dict[str, StageConfig]

    @property
    def stage_names(self) -> list[str]:
        """Return the stages that this run has, in their order."""
        has_fovea = self.shape == "cells" and self.parts.foveal_branch
        return [name for name in STAGES if name != "fovea" or has_fovea]

    @property
    def vision_config(self) -> VisionConfig:
        """Return the sizes of the encoder in training."""
        registers = self.vision.num_register_tokens if self.parts.register_tokens else 0
        return replace(self.vision, batch_norm=True, num_register_tokens=registers)

    def settings_of(self, stage: str) -> dict:
        """Return the settings that a stage's weights depend on: all but the later stages' and the workers."""
        settings = as_json(self)
        settings["stages"] = {name: settings["stages"][name] for name in STAGES[: STAGES.index(stage) + 1]}
        for irrelevant in ("reference_s", "parts"):
            for values in settings["stages"].values():
                del values[irrelevant]
        del settings["workers"]
        if stage in ("fovea", "vision"):
            del settings["words"], settings["text"]
        # what acts at inference can be switched on the same weights
        settings["parts"] = {name: settings["parts"][name] for name in TRAINED_PARTS}
        return settings


def load_config(file: Path, frames: str | None = None) -> RunConfig:
    """Read a config, which may have changes only: `extends` then names the file that has the rest.

    Args:
        frames: names of the sources to keep, separated by commas.

    Raises:
        InputError: missing, not TOML, or a key or value that is unknown, missing or of the wrong type.
    """
    return build_config(read_toml(file), file, frames)


def build_config(values: dict, file: Path, frames: str | None = None) -> RunConfig:
    """Build the config of a file's values; for arguments and errors, see `load_config`."""
    remedy = "correct the file; pretrain/cpu.toml has every key"
    stages = values.get("stages")
    for unknown in set(stages) - set(STAGES) if isinstance(stages, dict) else ():
        raise InputError(file, f"unknown stage {unknown}", suggest_name(unknown, STAGES, remedy))
    try:
        config = msgspec.convert(values, RunConfig)
    except msgspec.ValidationError as error:
        raise InputError(file, first_line(error), remedy) from None
    known = as_json(config)
    if extra := difference(values, known):
        *tables, key = extra[0].split(".")
        siblings = functools.reduce(dict.__getitem__, tables, known)
        raise InputError(file, f"unknown key {extra[0]}", suggest_name(key, siblings, remedy))
    if absent := [name for name in config.stage_names if name not in config.stages]:
        raise InputError(file, f"has no [stages.{absent[0]}]", remedy)
    if config.shape not in SHAPES:
        raise InputError(file, f"shape is {config.shape}, expected one of {', '.join(SHAPES)}", remedy)
    if frames:
        chosen = frames.split(",")
        if unknown := [name for name in chosen if name not in config.sources]:
            remedy = suggest_name(unknown[0], config.sources, f"choose among {', '.join(config.sources)}")
            raise InputError("--frames", f"{file.name} has no source {unknown[0]}", remedy)
        config = replace(config, sources={name: one for name, one in config.sources.items() if name in chosen})
    return config


def read_toml(file: Path) -> dict:
    """Read the values of a TOML file, and below them those of the file that it extends."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(file, "no such file", "correct --config; pretrain/cpu.toml is an example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(file, f"not TOML ({first_line(error)})", "correct the file") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    beside = file.parent / str(base)
    return _merge(read_toml(beside if beside.exists() else CPU_CONFIG.parent / str(base)), values)


def as_json(config: RunConfig) -> dict:
    """Return a config as JSON has it, with lists for tuples."""
    return msgspec.json.decode(msgspec.json.encode(config))


def difference(left: dict, right: dict, prefix: str = "") -> tuple[str, object, object] | None:
    """Find the first key of `left`, as in `stages.text.steps`, whose value differs: (key, left's, right's), or None."""
    for key, value in left.items():
        if key not in right:
            return f"{prefix}{key}", value, None
        if isinstance(value, dict) and isinstance(right[key], dict):
            if found := difference(value, right[key], f"{prefix}{key}."):
                return found
        elif value != right[key]:
            return f"{prefix}{key}", value, right[key]
    return None


def _merge(base: dict, changes: dict) -> dict:
    """Return nested dicts with the values of `changes` in place of those of `base`."""
    both = {key: _merge(base[key], value) for key, value in changes.items() if isinstance(base.get(key), dict)}
    return base | changes | both
