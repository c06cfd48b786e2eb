"""The training loop of all stages: trapezoid learning rate, resumable checkpoints, a curve in JSON lines."""

import contextlib
import json
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write
from homework.utils.progress import progress_bar

WARMUP_STEPS = 200
COOLDOWN_SHARE = 0.3  # of the steps
WEIGHT_DECAY = 0.05  # of matrices and kernels
LOG_EVERY, SAVE_EVERY, EVALUATE_EVERY = 50, 250, 1000  # steps

LossFunction = Callable[[np.random.Generator], dict[str, Tensor]]


def lr_factor(step: int, steps: int, warmup: int = WARMUP_STEPS) -> float:
    """Compute the learning rate's factor: linear up, flat, linear down (Hagele et al. 2024, arXiv:2405.18392).

    It is flat in between, so that a longer run can resume from a checkpoint of a shorter one.
    """
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, COOLDOWN_SHARE * steps))


def train_stage(
    module: nn.Module,
    compute_losses: LossFunction,
    run_dir: str | Path,
    stage: str,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    cooldown_losses: LossFunction | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    warmup: int = WARMUP_STEPS,
    save_every: int = SAVE_EVERY,
) -> None:
    """Minimise the sum of `compute_losses(rng)` over the trainable parameters of `module`.

    Writes the checkpoint `run_dir/<stage>.pt` and appends to the curve `run_dir/<stage>.jsonl`. A stopped run resumes
    from its checkpoint; a finished one returns at once. During cooldown `cooldown_losses` is minimised, if given.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    parameters = [p for p in module.parameters() if p.requires_grad]
    decayed, others = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
    checkpoint, curve, step = run_dir / f"{stage}.pt", run_dir / f"{stage}.jsonl", 0
    if checkpoint.exists():
        step = load_checkpoint(checkpoint, module, optimizer)
        _truncate_curve(curve, step)
    start, recent = time.monotonic(), {}
    progress = progress_bar(total=steps, initial=step, desc=stage, unit="step")
    while step < steps:
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * lr_factor(step, steps, warmup)
        in_cooldown = steps - step <= COOLDOWN_SHARE * steps
        compute = cooldown_losses if cooldown_losses and in_cooldown else compute_losses
        losses = compute(np.random.default_rng((seed, step)))  # seeded per step: a resumed run draws the same batches
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 5.0)
        if torch.isfinite(norm):
            optimizer.step()
        for name, value in losses.items():
            recent.setdefault(name, []).append(value.item())
        step += 1
        progress.update()
        if step % LOG_EVERY == 0 or step == steps:
            row = {"step": step, "seconds": round(time.monotonic() - start, 1)}
            row |= {name: round(sum(values) / len(values), 4) for name, values in recent.items()}
            recent = {}
            if evaluate and (step % EVALUATE_EVERY == 0 or step == steps):
                module.eval()
                row |= evaluate()
            with open(curve, "a") as log:
                log.write(json.dumps(row) + "\n")
            progress.set_postfix(loss=round(float(total.detach()), 3))
        if step % save_every == 0 or step == steps:
            save_checkpoint(checkpoint, step, module, optimizer.state_dict())
    progress.close()


def save_checkpoint(path: Path, step: int, module: nn.Module, optimizer: dict) -> None:
    """Write a checkpoint with the optimizer's state."""
    with atomic_write(path) as temporary:
        torch.save({"step": step, "model": module.state_dict(), "optimizer": optimizer}, temporary)


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Load a checkpoint into the module and the optimizer, and return its step."""
    state = read_checkpoint(path)
    with errors_as_input_error(path):
        module.load_state_dict(state["model"])
        if optimizer:
            optimizer.load_state_dict(state["optimizer"])
        return state["step"]


def read_checkpoint(path: Path) -> dict:
    """Read `step`, `model` and `optimizer` of a checkpoint."""
    with errors_as_input_error(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("step", "model", "optimizer")}


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
        # PyTorch names the weights that do not fit in the last lines
        reason = str(error).splitlines()[-1].strip() if isinstance(error, RuntimeError) else first_line(error)
        raise InputError(path, f"{problem} ({textwrap.shorten(reason, 160)})", remedy) from None


def _truncate_curve(curve: Path, step: int) -> None:
    """Drop the rows of steps that are trained again."""
    if curve.exists():
        rows = [row for row in curve.read_text().splitlines(keepends=True) if json.loads(row)["step"] <= step]
        with atomic_write(curve) as temporary:
            temporary.write_text("".join(rows))
