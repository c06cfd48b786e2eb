"""The whole recipe: frames, stages, export, and a manifest of what was done."""

import json
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from homework.models.loading import pick_device
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.connector import num_image_tokens
from homework.models.tux_nano.processor import TuxNanoProcessor
from homework.training.trainer import use_all_cores
from homework.utils.errors import InputError, folder_not_found, suggest_name
from homework.utils.io import atomic_folder, read_json, write_json
from homework.utils.parallel import available_cores
from supertux.render.engines import check_installed
from supertux.render.planner import KARTS as DRAWN_KARTS
from supertux.render.planner import race_plans
from supertux.render.renderer import is_done, render
from supertux.sample import unpack_split

from . import BASE_DIR
from .assemble import export_base
from .config import ALL_PARTS, RunConfig, as_json
from .dataset import PretrainDataset, load_training_data
from .evaluate import base_predictor, evaluate_text, evaluate_views, head_accuracy
from .packs import data_fingerprint, find_packs, pack_split
from .targets import KARTS, TRACKS
from .text_stage import ReadStage, TextStage
from .trainer import clock, elapsed, read_checkpoint, train_stage
from .vision_stages import FoveaStage, build_vision_stage, load_average

logger = logging.getLogger(__name__)

COST_FILE = "frames.json"  # in the run's folder: what drawing and packing have cost
MANIFEST_FILE = "pretraining.json"  # beside the weights
SAMPLE = "sample"  # preset of the frames in sample/
WITHOUT = "or run with --frames train"


class Run:
    """A run in its folder, which holds a checkpoint and a curve per stage, and at last the base.

    Args:
        config: its settings.
        data_dir: the data folder; packs of frames are kept in it.
        run_dir: the run's folder, which can be moved to another machine.
    """

    def __init__(self, config: RunConfig, data_dir: Path, run_dir: Path):
        self.config, self.data_dir, self.run_dir = config, data_dir, run_dir

    @property
    def parts(self) -> list[tuple[str, str, int]]:
        """The parts of all stages in order: (name, stage, step at its end)."""
        return [
            (f"{stage}-{part}" if one.parts > 1 else stage, stage, round(one.steps * part / one.parts))
            for stage in self.config.stage_names
            for one in [self.config.stages[stage]]
            for part in range(1, one.parts + 1)
        ]

    def checkpoint(self, stage: str) -> Path:
        """Return the file of a stage's checkpoint."""
        return self.run_dir / f"{stage}.pt"

    def read_step(self, stage: str) -> int:
        """Return how many steps of a stage are done; raises InputError if they were done with other settings."""
        if not self.checkpoint(stage).exists():
            return 0
        return read_checkpoint(self.checkpoint(stage), self.config.settings_of(stage))["step"]

    def run(self, part: str | None = None) -> None:
        """Do all that is left, or one part of a stage.

        Raises:
            InputError: something is missing that cannot be made, or the folder is of a run with other settings.
        """
        names = [name for name, *_ in self.parts]
        if part is not None and part not in names:
            remedy = suggest_name(part, names, f"choose among {', '.join(names)}")
            raise InputError("--stage", f"this run has no stage {part}", remedy)
        steps = {stage: self.read_step(stage) for stage in self.config.stage_names}
        todo = [(name, stage, until) for name, stage, until in self.parts if steps[stage] < until]
        if part is not None:
            own = {name: stage for name, stage, _ in self.parts}[part]
            earlier = names[: names.index(part)]
            needed = [
                name
                for name, stage, _ in todo
                if name in earlier and (own == "text" or stage == own or (own == "vision" and stage == "fovea"))
            ]
            if needed:
                raise InputError(part, f"the stage {needed[0]} before it is not finished", f"run --stage {needed[0]}")
            todo = [one for one in todo if one[0] == part]
        use_all_cores()
        self.print_plan(steps, todo)
        if part is None or any(stage != "read" for _, stage, _ in todo):
            self.make_frames()
        for _, stage, until in todo:
            self.train(stage, until)
        if part is None:
            self.finish()

    def print_plan(self, steps: dict[str, int], todo: list[tuple[str, str, int]]) -> None:
        """Print what is left and how long it takes, as far as is known before the first step."""
        total = 0.0
        for name, stage, until in todo:
            hours = (until - steps[stage]) * self.config.stages[stage].reference_s / 3600
            logger.info(f"{name:10} {until - steps[stage]:7,} steps left, about {hours:.1f} h on two cores")
            steps, total = steps | {stage: until}, total + hours
        logger.info(f"{total:.1f} h of training left on two cores" if todo else "all stages are finished")

    def make_frames(self) -> None:
        """Draw the frames that are missing, and pack them; first of all check that this can be done."""
        to_draw = [name for name in self.config.sources if self._needs_drawing(name)]
        for name, source in self.config.sources.items():
            folder = self.data_dir / name
            if name in to_draw:
                try:
                    check_installed(source.preset)
                except InputError as error:
                    raise InputError(folder, error.args[1], f"{error.args[2]}, {WITHOUT}") from None
            elif source.preset != SAMPLE and not folder.is_dir() and not find_packs(self.data_dir, name):
                remedy = f"run `python -m supertux download`, {WITHOUT}"
                raise folder_not_found(folder, "no such frames", remedy)
        for name, source in self.config.sources.items():
            with self._measured():
                if source.preset == SAMPLE and not (self.data_dir / name).is_dir():
                    with atomic_folder(self.data_dir / name) as folder:
                        folder.mkdir()
                        unpack_split("train", folder)
                elif name in to_draw:
                    render(output=self.data_dir / name, frames=source.frames, seed=source.seed, preset=source.preset)
                pack_split(self.data_dir, name)

    def _needs_drawing(self, name: str) -> bool:
        """Return whether a source's frames are incomplete; packs alone came from another machine."""
        source, folder = self.config.sources[name], self.data_dir / name
        if not source.frames or (not folder.is_dir() and find_packs(self.data_dir, name)):
            return False
        plans = race_plans(source.seed, source.frames, list(TRACKS), list(DRAWN_KARTS), source.preset)
        return not all(is_done(plan, folder) for plan in plans)

    def train(self, stage: str, until: int) -> None:
        """Train a stage up to a step."""
        config, schedule = self.config, self.config.stages[stage]
        views = None if stage == "read" else load_training_data(config, self.data_dir)
        module = self.build_module(stage, views)
        module.load_previous(self.run_dir)  # a checkpoint has the weights of its own stage only
        self.run_dir.mkdir(parents=True, exist_ok=True)

        def report(step: int, seconds: float) -> None:
            later = [config.stages[name] for name in config.stage_names[config.stage_names.index(stage) + 1 :]]
            left = sum(one.steps * one.reference_s for one in later) * seconds / schedule.reference_s
            here = (schedule.steps - step) * seconds
            message = f"{stage}: step {step:,} of {schedule.steps:,}, {seconds:.2f} s per step"
            logger.info(f"{message}, {here / 3600:.1f} h left in this stage, {(here + left) / 3600:.1f} h in all")

        train_stage(
            module,
            schedule,
            self.checkpoint(stage),
            config.settings_of(stage),
            config.seed,
            until,
            config.workers,
            self._evaluation(stage, module),
            report,
        )

    def build_module(self, stage: str, views: PretrainDataset | None = None) -> nn.Module:
        """Build a stage's module with its initial weights."""
        torch.manual_seed(self.config.seed)
        if stage == "read":
            return ReadStage(self.config, self.tokens())
        if stage == "text":
            return TextStage(self.config, self.tokens(), views)
        return FoveaStage(self.config, views) if stage == "fovea" else build_vision_stage(self.config, views)

    def _evaluation(self, stage: str, module: nn.Module) -> Callable[[], dict[str, float]] | None:
        """Return what measures a stage on the moments that training holds out."""
        if stage not in ("vision", "text"):
            return None
        held_out = load_training_data(self.config, self.data_dir, held_out=True)
        return lambda: evaluate_text(module, held_out) if stage == "text" else head_accuracy(module.predict, held_out)

    def tokens(self) -> PromptTokens:
        """Return the prompts of the shipped tokenizer; a base in the making has no config that names its sizes."""
        return PromptTokens(TuxNanoProcessor(BASE_DIR, num_image_tokens(len(KARTS))))

    def load_text_stage(self) -> TextStage:
        """Build the model that the finished stages make."""
        stage = TextStage(self.config, self.tokens())
        stage.load_previous(self.run_dir)
        load_average(stage, self.checkpoint("text"))
        return stage.eval()

    def finish(self) -> None:
        """Write the base and its manifest into the run's folder, if it is a model that `homework` can load."""
        if self.config.parts != ALL_PARTS or self.config.shape != "cells":
            logger.info(f"finished {self.run_dir}; only a model of shape cells with all parts is exported")
            return
        output = self.run_dir / "base"
        export_base(self.load_text_stage(), BASE_DIR, output)
        write_json(output / MANIFEST_FILE, self.manifest())
        logger.info(f"saved {output}; evaluate it with `python -m pretrain eval {output}`")

    def manifest(self) -> dict:
        """Return what was done, and with what: settings, commit, data, curves, costs, machine."""
        stages = {name: read_checkpoint(self.checkpoint(name)) for name in self.config.stage_names}
        costs = {name: {"seconds": one["seconds"], "cpu_seconds": one["cpu_seconds"]} for name, one in stages.items()}
        curves = {
            name: [json.loads(line) for line in self.checkpoint(name).with_suffix(".jsonl").read_text().splitlines()]
            for name in stages
        }
        sources = [name for name, source in self.config.sources.items() if source.weight]
        packs = [file for name in sources for file in find_packs(self.data_dir, name)]
        held_out = load_training_data(self.config, self.data_dir, held_out=True)
        evaluated = evaluate_views(base_predictor(self.run_dir / "base"), held_out)
        return {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "commit": read_commit(),
            "config": as_json(self.config),
            "data": {"fingerprint": data_fingerprint(packs), "sources": sources},
            "cost": {"frames": self._frames_cost()} | costs,
            "machine": describe_machine(),
            "held-out moments": {group: [round(100 * n, 2) for n in one] for group, (one, _) in evaluated.items()},
            "curves": curves,
        }

    def _frames_cost(self) -> dict[str, float]:
        file = self.run_dir / COST_FILE
        return read_json(file) if file.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Add what the block costs to the cost of frames, even if it is interrupted."""
        started, before = clock(), self._frames_cost()
        try:
            yield
        finally:
            cost = {name: round(before[name] + value, 1) for name, value in elapsed(started).items()}
            write_json(self.run_dir / COST_FILE, cost)


def read_commit() -> str | None:
    """Return the commit of this repository, with `+changes` if files differ from it; None outside of a checkout."""
    root = Path(__file__).parents[1]
    try:
        git = lambda *words: subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True)
        commit = git("rev-parse", "HEAD").stdout.strip()
        return commit + ("+changes" if git("status", "--porcelain", "--untracked-files=no").stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_machine() -> dict[str, str | int]:
    """Return the processor, the number of cores, the accelerator, and the versions of Python and torch."""
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"processor": platform.machine(), "cores": available_cores(), "device": name} | versions
