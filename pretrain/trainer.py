"""One training loop for every stage: trapezoid schedule, checkpoints to resume from, a curve in JSON lines."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write
from homework.utils.progress import progress_bar

WARMUP = 200  # steps
COOLDOWN = 0.3  # share of the steps


def lr_factor(step: int, steps: int, warmup: int = WARMUP) -> float:
    """Linear up, flat, linear down over the last `COOLDOWN` of the steps (Hagele et al. 2024, arXiv:2405.18392).

    Flat in between, so a longer run can go on from a checkpoint of a shorter one.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, COOLDOWN * steps))


def cools_down(step: int, steps: int) -> bool:
    """Whether a step is one of the last, in which the learning rate goes down."""
    return steps - step <= COOLDOWN * steps


def train_stage(
    module: nn.Module,
    loss_of: Callable[[np.random.Generator], dict[str, Tensor]],
    folder: Path,
    stage: str,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    seed: int = 0,
    save_every: int = 250,
    warmup: int = WARMUP,
    loss_at_last: Callable[[np.random.Generator], dict[str, Tensor]] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 1000,
) -> None:
    """Minimise the sum of `loss_of(rng)` over `module`'s parameters for `steps` steps.

    Writes `folder/<stage>.pt` (to resume from) and appends to `folder/<stage>.jsonl` (the curve).
    A run that was stopped goes on from the last checkpoint; a finished stage returns at once. With `loss_at_last`, that
    is minimised instead while the learning rate goes down.

    Raises:
        InputError: the checkpoint can't be read or belongs to another geometry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    path, step = folder / f"{stage}.pt", 0
    if path.exists():
        step = load_checkpoint(path, module, optimizer)
        _drop_rows_after(step, folder / f"{stage}.jsonl")
    started, seen = time.monotonic(), {}
    progress = progress_bar(total=steps, initial=step, desc=stage, unit="step")
    while step < steps:
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * lr_factor(step, steps, warmup)
        loss = loss_at_last if loss_at_last and cools_down(step, steps) else loss_of
        losses = loss(np.random.default_rng((seed, step)))  # so a resumed run sees the same batches
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        for name, value in losses.items():
            seen.setdefault(name, []).append(value.item())
        step += 1
        progress.update()
        if step % 50 == 0 or step == steps:
            row = {"step": step, "seconds": round(time.monotonic() - started, 1)}
            row |= {name: round(sum(values) / len(values), 4) for name, values in seen.items()}
            seen = {}
            if evaluate and (step % evaluate_every == 0 or step == steps):
                module.eval()
                row |= evaluate()
            with open(folder / f"{stage}.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            progress.set_postfix(loss=round(float(total.detach()), 3))
        if step % save_every == 0 or step == steps:
            save_checkpoint(path, step, module, optimizer.state_dict())
    progress.close()


def save_checkpoint(path: Path, step: int, module: nn.Module, optimizer: dict) -> None:
    """Write what `load_checkpoint` reads.

    Args:
        optimizer: its state; empty where nothing is to go on from there but another stage.
    """
    with atomic_write(path) as temporary:
        torch.save({"step": step, "model": module.state_dict(), "optimizer": optimizer}, temporary)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Read what `train_stage` wrote; how many steps were done by then.

    Raises:
        InputError: no such checkpoint, a broken one, or one of another geometry.
    """
    state = read_checkpoint(path)
    with _errors_as_input_error(path):
        module.load_state_dict(state["model"])
        if optimizer:
            optimizer.load_state_dict(state["optimizer"])
        return state["step"]


def read_checkpoint(path: Path) -> dict:
    """What `train_stage` wrote: `step`, `model` and `optimizer`.

    Raises:
        InputError: no such checkpoint, or a broken one.
    """
    with _errors_as_input_error(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("step", "model", "optimizer")}


@contextlib.contextmanager
def _errors_as_input_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(path, "no such checkpoint", "run the stage before this one") from None
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        problem = f"not a checkpoint of this stage ({first_line(error)})"
        raise InputError(path, problem, "move it away to start anew") from None


def _drop_rows_after(step: int, curve: Path) -> None:
    """Forget what the curve says of steps that are done again."""
    if curve.exists():
        rows = [row for row in curve.read_text().splitlines(keepends=True) if json.loads(row)["step"] <= step]
        with atomic_write(curve) as temporary:
            temporary.write_text("".join(rows))
