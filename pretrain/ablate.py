"""Measure what each part of the model brings, by training without it or by switching it off at inference."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch

from homework.labels.duplicates import MEAN, Estimate
from homework.labels.questions import QUESTIONS
from homework.training.trainer import use_all_cores

from .config import ALL_PARTS, TRAINED_PARTS, PartsConfig, RunConfig
from .dataset import PretrainDataset, load_training_data
from .evaluate import Measured, answer_questions, estimate, measure_views
from .run import Run
from .synthetic_scenes import ideal_predictions, sample_scenes
from .text_stage import ReadStage
from .trainer import read_checkpoint
from .vision_stages import load_average, load_vision_stage

BUDGET = 10  # a run has a tenth of the steps
NUM_SCENES = 400  # synthetic scenes to evaluate the text model on
COLUMNS = ("ego", "total", "track", "relation", "count", MEAN)


def run_ablations(config: RunConfig, data_dir: Path, run_dir: Path, split: str | None) -> list[str]:
    """Train with all parts and without each of them, and return a table as lines.

    Args:
        split: the folder of the data to evaluate on; None: the moments that training holds out.
    """
    use_all_cores()
    config = shorten(config)
    lines = [
        f"{'without':20}{'acts in':>10}" + "".join(f"{name:>10}" for name in COLUMNS) + f"{'95 %':>14}{'s/step':>8}"
    ]
    whole = _train(replace(config, parts=ALL_PARTS), data_dir, run_dir / "all", "read", "vision")
    views = PretrainDataset(data_dir, {split: 1.0}) if split else load_training_data(config, data_dir, held_out=True)
    stage = load_vision_stage(whole.config, whole.run_dir)
    reference, text_reference = measure_views(stage.predict, views)["types"], _measure_reading(whole)
    lines.append(_format("nothing", "", estimate(reference), _cost(whole, "vision")))
    for part in (field.name for field in fields(PartsConfig)):
        without = replace(config, parts=replace(ALL_PARTS, **{part: False}))
        if part == "name_matching_head":
            run = _train(without, data_dir, run_dir / part, "read")
            lines.append(
                _format(part, "read", estimate(_changes(text_reference, _measure_reading(run))), _cost(run, "read"))
            )
        elif part in TRAINED_PARTS:
            run = _train(without, data_dir, run_dir / part, "vision")
            found = measure_views(load_vision_stage(run.config, run.run_dir).predict, views)["types"]
            lines.append(_format(part, "training", estimate(_changes(reference, found)), _cost(run, "vision")))
        else:
            stage.parts = without.parts
            found = measure_views(stage.predict, views)["types"]
            lines.append(_format(part, "inference", estimate(_changes(reference, found)), None))
    note = f"Rows after the first are changes in points. {split or 'Held-out moments'}, each moment counted once."
    return [*lines, f"{note} For the name-matching head: synthetic scenes, relations among them."]


def shorten(config: RunConfig) -> RunConfig:
    """Return a config with a tenth of the steps of each stage."""
    shorter = lambda stage: replace(
        stage, steps=max(1, stage.steps // BUDGET), warmup=max(1, stage.warmup // BUDGET), parts=1
    )
    return replace(config, stages={name: shorter(stage) for name, stage in config.stages.items()})


def _train(config: RunConfig, data_dir: Path, run_dir: Path, *last: str) -> Run:
    """Train the named stages, and `fovea` before `vision`, as far as they are not yet."""
    run = Run(config, data_dir, run_dir)
    if "vision" in last:
        run.make_frames()
    for stage in config.stage_names:
        is_needed = stage in last or (stage == "fovea" and "vision" in last)
        if is_needed and run.read_step(stage) < config.stages[stage].steps:
            run.train(stage, config.stages[stage].steps)
    return run


@torch.no_grad()
def _measure_reading(run: Run) -> list[Measured]:
    """Measure the answers of a run's stage `read` about synthetic scenes, each of which is a moment."""
    stage, rng = ReadStage(run.config, run.tokens()), np.random.default_rng(run.config.seed + 1)
    load_average(stage, run.checkpoint("read"))
    stage.eval()
    scenes = sample_scenes(rng, NUM_SCENES)
    features = stage.model.connector.embed_predictions(ideal_predictions(scenes, rng))
    answers = answer_questions(stage, features, scenes, QUESTIONS, rng)
    return [(number, kind, kind, float(right)) for number, kind, right in answers]


def _changes(before: list[Measured], after: list[Measured]) -> list[Measured]:
    """Subtract paired measurements, which are of the same items."""
    return [(*one[:3], other[3] - one[3]) for one, other in zip(before, after, strict=True)]


def _cost(run: Run, stage: str) -> float:
    """Return a stage's CPU seconds per step."""
    return read_checkpoint(run.checkpoint(stage))["cpu_seconds"] / run.config.stages[stage].steps


def _format(name: str, acts_in: str, estimates: dict[str, Estimate], cost: float | None) -> str:
    cells = "".join(
        f"{100 * estimates[column].value:10.1f}" if column in estimates else f"{'-':>10}" for column in COLUMNS
    )
    low, high = (100 * bound for bound in estimates[MEAN][1:])
    return f"{name:20}{acts_in:>10}{cells}{low:8.1f}-{high:<5.1f}" + (f"{cost:8.2f}" if cost is not None else "")
