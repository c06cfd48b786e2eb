"""The training loop of all stages: trapezoid learning rate, moving average of the weights, resumable checkpoints."""

import contextlib
import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from homework.models.loading import pick_device, pick_dtype
from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write
from homework.utils.progress import progress_bar

from .config import StageConfig, difference

LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 50, 250, 1000  # steps
MAX_GRADIENT_NORM = 5.0
SEED_STRIDE = 1_000_003  # between the seeds of two runs; each step has its own

Report = Callable[[int, float], None]  # gets the step, and the seconds of one step


class Stage(Protocol):
    """Describe what is trained: an `nn.Module` with these two methods."""

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> Any:
        """Make a batch: tensors on the CPU, in dicts and tuples."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Compute one scalar loss per target, for a batch on the module's device."""


class _Batches(Dataset):
    """The batch of each step. A batch depends on seed and step alone, so a resumed run draws the same ones."""

    def __init__(self, stage: Stage, schedule: StageConfig, seed: int):
        self.stage, self.schedule, self.seed = stage, schedule, seed

    def __getitem__(self, step: int) -> Any:
        as_rendered = self.schedule.steps - step <= self.schedule.as_rendered * self.schedule.steps
        return self.stage.sample(np.random.default_rng((self.seed, step)), as_rendered)


def lr_factor(step: int, schedule: StageConfig) -> float:
    """Compute the learning rate's factor: linear up, flat, linear down (Hagele et al. 2024, arXiv:2405.18392)."""
    left = schedule.steps - step
    return min(1.0, (step + 1) / max(1, schedule.warmup), left / max(1.0, schedule.cooldown * schedule.steps))


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that are trained, by name, with the statistics of their batch norms."""
    tensors = {name: weight.data for name, weight in module.named_parameters() if weight.requires_grad}
    owners = {name.rpartition(".")[0] for name in tensors}
    buffers = ((name, buffer) for name, buffer in module.named_buffers() if name.rpartition(".")[0] in owners)
    return tensors | {name: buffer for name, buffer in buffers if buffer.is_floating_point()}


class Training:
    """A stage in training: weights, their moving average, the optimizer, the step and what the steps have cost."""

    def __init__(self, module: nn.Module, schedule: StageConfig, settings: dict):
        self.module, self.schedule, self.settings = module, schedule, settings
        self.weights = trained_tensors(module)
        self.average = {name: weight.clone() for name, weight in self.weights.items()}
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        decayed, others = ([p for p in self.parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)
        self.step, self.cost = 0, {"seconds": 0.0, "cpu_seconds": 0.0}

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.schedule.steps

    def update(self, losses: dict[str, Tensor]) -> None:
        """Take one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate * lr_factor(self.step, self.schedule)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        if torch.isfinite(nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)):
            self.optimizer.step()
        # shorter at first, or the average would hold on to the initial weights
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self.weights.values()), None)
        self.step += 1

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the module have the averaged weights, in eval mode, for the block."""
        own = {name: weight.clone() for name, weight in self.weights.items()}
        copy_tensors(self.weights, self.average)
        self.module.eval()
        yield
        copy_tensors(self.weights, own)

    def save(self, file: Path) -> None:
        """Write a checkpoint; that of a finished stage has the averaged weights only."""
        state = {"step": self.step, "settings": json.dumps(self.settings), "average": self.average, **self.cost}
        if not self.is_finished:
            state |= {"weights": self.weights, "optimizer": self.optimizer.state_dict()}
        with atomic_write(file) as temporary:
            torch.save(state, temporary)

    def load(self, file: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it is broken, or of a stage with other settings.
        """
        state = read_checkpoint(file, self.settings)
        with errors_as_input_error(file):
            copy_tensors(self.average, state["average"])
            copy_tensors(self.weights, state.get("weights", state["average"]))
            if "optimizer" in state:
                self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.cost = state["step"], {name: state[name] for name in self.cost}


def train_stage(
    module: nn.Module,
    schedule: StageConfig,
    file: Path,
    settings: dict,
    seed: int,
    until: int | None = None,
    workers: int = 0,
    evaluate: Callable[[], dict[str, float]] | None = None,
    report: Report | None = None,
) -> None:
    """Minimise the sum of a stage's losses; then the module has the averaged weights.

    Writes the checkpoint `file` and appends to the curve beside it, a .jsonl file. A stopped run resumes from its
    checkpoint; SIGINT and SIGTERM save one first. A finished one returns at once.

    Args:
        module: a `Stage`.
        settings: see `RunConfig.settings_of`.
        until: the step to stop at, if not the last one.
        evaluate: returns numbers for the curve.
    """
    device = pick_device()
    training = Training(module.to(device), schedule, settings)
    curve = file.with_suffix(".jsonl")
    if file.exists():
        training.load(file)
    _truncate_curve(curve, training.step)
    until = schedule.steps if until is None else until
    start_step, logged, started, recent = training.step, training.step, clock(), {}
    before = dict(training.cost)
    batches = DataLoader(
        _Batches(module, schedule, seed),
        sampler=range(training.step, until),
        batch_size=None,
        collate_fn=lambda batch: batch,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # so that workers share the frames
        worker_init_fn=lambda _: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    progress = progress_bar(total=until, initial=training.step, desc=file.stem, unit="step")
    with deferred_signals() as received, contextlib.closing(progress):
        for batch in batches:
            module.train()
            torch.manual_seed(seed * SEED_STRIDE + training.step)
            with torch.autocast(device.type, pick_dtype(device), enabled=pick_dtype(device) != torch.float32):
                losses = module.losses(_to_device(batch, device))
            training.update(losses)
            for name, value in losses.items():
                recent[name] = recent.get(name, 0) + value.detach()
            progress.update()
            training.cost = {name: before[name] + now for name, now in elapsed(started).items()}
            step, is_last = training.step, training.step == until
            if step % LOG_EVERY == 0 or is_last:
                row = {"step": step, "seconds": round(training.cost["seconds"], 1)}
                row |= {name: round(value.item() / (step - logged), 4) for name, value in recent.items()}
                logged, recent = step, {}
                if evaluate and (step % EVALUATE_EVERY == 0 or training.is_finished):
                    with training.averaged():
                        row |= evaluate()
                with open(curve, "a") as log:
                    log.write(json.dumps(row) + "\n")
            if step % SAVE_EVERY == 0 or is_last or received:
                training.save(file)
                if report:
                    report(step, elapsed(started)["seconds"] / (step - start_step))
            if received:
                raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    if training.is_finished:
        copy_tensors(training.weights, training.average)
    module.eval()


@contextlib.contextmanager
def deferred_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM during the block, for the end of a step; the second of a kind acts at once."""
    received, kinds = [], (signal.SIGINT, signal.SIGTERM)

    def note(number: int, _) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous = {number: signal.getsignal(number) for number in kinds}
    for number in kinds:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def read_checkpoint(file: Path, settings: dict | None = None) -> dict:
    """Read a checkpoint; with `settings`, check that it was trained with them.

    Raises:
        InputError: missing or broken, or of other settings.
    """
    with errors_as_input_error(file):
        state = torch.load(file, map_location="cpu", weights_only=True)
        trained_with, _ = json.loads(state["settings"]), state["average"]
    for one, other in ((settings, trained_with), (trained_with, settings)):
        if settings is not None and (found := difference(one, other)):
            now, before = found[1:] if one is settings else found[:0:-1]
            problem = f"was trained with other settings ({found[0]} was {before}, is {now})"
            raise InputError(file, problem, "restore them, choose another --run-dir, or delete the file")
    return state


def copy_tensors(targets: dict[str, Tensor], sources: dict[str, Tensor]) -> None:
    """Copy tensors of the same names; raises a ValueError if names or shapes differ."""
    if different := targets.keys() ^ sources.keys():
        raise ValueError(f"weights are missing or unknown: {', '.join(sorted(different)[:3])}")
    with torch.no_grad():
        for name, target in targets.items():
            if target.shape != sources[name].shape:
                raise ValueError(f"{name} has shape {tuple(sources[name].shape)}, not {tuple(target.shape)}")
            target.copy_(sources[name])


@contextlib.contextmanager
def errors_as_input_error(
    path: Path, problem: str = "not a checkpoint of this stage", remedy: str = "move it away, or give another"
) -> Iterator[None]:
    """Report what goes wrong with a file of weights as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(path, "no such checkpoint", "run the previous stage first, or correct the path") from None
    except Exception as error:  # torch, pickle and safetensors each raise their own
        raise InputError(path, f"{problem} ({textwrap.shorten(first_line(error), 160)})", remedy) from None


def _to_device(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _to_device(value, device) for name, value in batch.items()}
    return type(batch)(_to_device(value, device) for value in batch) if isinstance(batch, (list, tuple)) else batch


def clock() -> dict[str, float]:
    """Return the time, and the CPU time of this process and those that it has waited for, in seconds."""
    return {"seconds": time.monotonic(), "cpu_seconds": sum(os.times()[:4])}


def elapsed(started: dict[str, float]) -> dict[str, float]:
    """Return the differences to an earlier `clock`."""
    return {name: now - started[name] for name, now in clock().items()}


def _truncate_curve(curve: Path, step: int) -> None:
    """Drop the rows of steps that are trained again, and a row that was cut short."""
    if not curve.exists():
        return
    rows = []
    for line in curve.read_text().splitlines(keepends=True):
        with contextlib.suppress(ValueError):
            if json.loads(line)["step"] <= step:
                rows.append(line)
    with atomic_write(curve) as temporary:
        temporary.write_text("".join(rows))
