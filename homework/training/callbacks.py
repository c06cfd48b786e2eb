"""Show, log and stop training by callbacks of the transformers Trainer."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import distributed
from transformers import TrainerCallback
from transformers import __version__ as transformers_version
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ..utils.errors import UsageError
from ..utils.io import atomic_write
from ..utils.progress import progress_bar
from .checkpoints import base_accuracy

logger = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"  # in a run's folder
STOPPING = "\nstopping after this step, which is saved; press Ctrl-C again to end at once\n"


def check_reporter(name: str | None) -> None:
    """Check before any work that transformers can report to the experiment tracker `name`.

    Raises:
        UsageError: it cannot, or the tracker's package is missing.
    """
    if name and name not in INTEGRATION_TO_CALLBACK:
        problem = f"transformers {transformers_version} cannot report to {name}"
        raise UsageError("--report-to", problem, "choose trackio (its newer versions can) or wandb")
    if name and find_spec(name) is None:
        raise UsageError("--report-to", f"the package {name} is not installed", f"run `pip install {name}`")


def format_duration(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def describe_loss(manifest: dict) -> str | None:
    """Say how a training changed the loss, from its first logged value to the last; None if there is only one."""
    losses = [row["loss"] for row in manifest.get("curve", []) if "loss" in row]
    if len(losses) < 2:
        return None
    verb = "fell" if losses[-1] < losses[0] else "went"
    return f"the loss {verb} from {losses[0]:.3f} to {losses[-1]:.3f}"


def describe_result(manifest: dict, seconds: float) -> str:
    """Return a line about the loss and the accuracy before and after a training, and its time."""
    before = base_accuracy(manifest)
    after = next((row["eval_accuracy"] for row in reversed(manifest["curve"]) if "eval_accuracy" in row), None)
    known = {name: score for name, score in (("before", before), ("after", after)) if score is not None}
    scores = "accuracy " + ", ".join(f"{name} {score:.1f} %" for name, score in known.items()) if known else None
    return "; ".join(filter(None, [f"trained in {format_duration(seconds)}", describe_loss(manifest), scores]))


class Display(TrainerCallback):
    """Show one live line on a terminal (step, loss, rate, time left), and a row of a table for each evaluation."""

    def __init__(self):
        self.bar, self.columns, self.loss = None, None, float("nan")
        self.num_begun, self.train_start, self.step_start, self.first_step_start = 0, 0.0, 0.0, 0.0

    def on_train_begin(self, args, state, control, **_) -> None:
        """Start the live line."""
        self.train_start = time.monotonic()
        is_shown = state.is_world_process_zero
        self.bar = progress_bar(
            desc="training", unit="step", total=state.max_steps, initial=state.global_step, shown=is_shown
        )

    def on_step_begin(self, args, state, control, **_) -> None:
        """Count and time a step."""
        self.num_begun, self.step_start = self.num_begun + 1, time.monotonic()
        if self.num_begun == 1:
            self.first_step_start = self.step_start

    def on_step_end(self, args, state, control, **_) -> None:
        """Advance the live line; in its place, a log gets an estimate after the second step: the first is slower."""
        self.bar.update(1)
        if self.bar.disable and self.num_begun == 2 and state.is_world_process_zero:
            seconds, left = time.monotonic() - self.step_start, state.max_steps - state.global_step
            duration = format_duration(seconds * left)
            logger.info(f"{seconds:.3g} s per step: about {duration} for the other {left} steps, without evaluations")
        if state.global_step == state.max_steps:
            control.should_evaluate = True  # so that the table ends with the finished adapter

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Show the mean loss of the last steps."""
        if "loss" in logs:
            self.loss = logs["loss"]
            self.bar.set_postfix_str(f"loss {self.loss:.3f}")

    def on_evaluate(self, args, state, control, metrics=None, **_) -> None:
        """Print a row with the time left, evaluations included; the first one has the columns' names above it."""
        if not state.is_world_process_zero:
            return
        results = {name.removeprefix("eval_").removeprefix("accuracy_"): value for name, value in metrics.items()}
        if self.columns is None:
            self.columns = list(results)
            logger.info("".join(f"{name:>10}" for name in ("step", "loss", *self.columns, "time", "left")))
        loss = "" if self.loss != self.loss else f"{self.loss:.3f}"
        numbers = "".join(f"{results.get(name, float('nan')):10.1f}" for name in self.columns)
        now, left = time.monotonic(), ""
        if self.num_begun:
            rate = (now - self.first_step_start) / self.num_begun  # evaluations included
            left = format_duration(rate * (state.max_steps - state.global_step))
        times = f"{format_duration(now - self.train_start):>10}{left:>10}".rstrip()
        logger.info(f"{state.global_step:10}{loss:>10}{numbers}{times}")

    def on_train_end(self, args, state, control, **_) -> None:
        """Close the live line."""
        self.bar.close()


class JsonLinesLog(TrainerCallback):
    """Write losses and evaluations for programs, one JSON object per line.

    The file is rewritten each time: a resumed run drops the rows of steps that it repeats.
    """

    def on_log(self, args, state, control, **_) -> None:
        """Write all rows."""
        if state.is_world_process_zero:
            with atomic_write(Path(args.output_dir) / LOG_FILE) as temporary:
                temporary.write_text("".join(f"{json.dumps(row)}\n" for row in state.log_history))


class StopOnSignal(TrainerCallback):
    """Save and stop at the end of the step in which Ctrl-C or SIGTERM arrives; a second one ends at once."""

    def __init__(self):
        self.is_requested, self.handlers = False, {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block, in the main thread, except those that are ignored, as after `nohup`."""
        if threading.current_thread() is threading.main_thread():
            found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            self.handlers = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}
        try:
            for number in self.handlers:
                signal.signal(number, self._request)
            yield
        finally:
            self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _request(self, *_) -> None:
        if not self.is_requested and int(os.environ.get("RANK", 0)) == 0:
            os.write(2, STOPPING.encode())  # a handler may interrupt sys.stderr, which cannot be entered twice
        self.is_requested = True
        if not distributed.is_initialized():  # a launcher passes a signal on that the terminal sent to all
            self._restore_handlers()

    def _stop_if_requested(self, args, control) -> None:
        if distributed.is_initialized():  # in the same step everywhere
            flag = torch.tensor(float(self.is_requested), device=args.device)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            self.is_requested = bool(flag)
        if self.is_requested:
            control.should_save = control.should_training_stop = True

    def on_step_end(self, args, state, control, **_) -> None:
        """Stop after a step."""
        self._stop_if_requested(args, control)

    def on_evaluate(self, args, state, control, **_) -> None:
        """Stop after an evaluation."""
        self._stop_if_requested(args, control)
