"""Find training runs: checkpoints go to a folder such as `runs/vlm-run`, the finished adapter to `runs/vlm`."""

import contextlib
import json
from pathlib import Path

from ..utils.errors import RUN_SUFFIX, InputError
from .lora_weights import MODULES, is_adapter, part_of

RUNS = Path("runs")
STATE_FILE = "trainer_state.json"  # what the Trainer writes last into a checkpoint


def default_run_dir(output: str | Path) -> Path:
    """Return the folder for the checkpoints and logs of the run whose adapter goes to `output`."""
    return Path(f"{output}{RUN_SUFFIX}")


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint. The Trainer writes its state last, so one without it was cut short."""
    complete = []
    for state in folder.glob(f"checkpoint-*/{STATE_FILE}"):
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError):
            complete.append((json.loads(state.read_text())["global_step"], state.parent))
    return max(complete, default=(0, None))[1]


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of steps before a checkpoint, which its name ends with."""
    return int(checkpoint.name.rpartition("-")[2])


def train_command(part: str, output: Path | None = None) -> str:
    """Return the command, in backticks, that trains a `part`, vlm or clip, or resumes its training."""
    flag = "" if output in (None, RUNS / part) else f" --output {output}"
    return f"`python -m homework.{MODULES[part]} train{flag}`"


def is_unfinished(output: Path) -> bool:
    """Return whether a run has begun whose adapter goes to `output`, and that folder is not there yet."""
    return not output.exists() and default_run_dir(output).is_dir()


def check_is_finished(checkpoint: str | Path, part: str) -> None:
    """Check that a folder is not the missing one of an unfinished run, nor that of a run's checkpoints.

    Args:
        part: vlm or clip, what the run trains if none of its checkpoints says so.

    Raises:
        InputError: it is; the remedy resumes the training.
    """
    folder = Path(checkpoint)
    output = Path(str(folder).removesuffix(RUN_SUFFIX))
    run_dir = default_run_dir(output)
    is_run_dir = folder == run_dir and folder.is_dir() and not any(folder.glob("*.safetensors"))
    if is_run_dir and is_adapter(output):
        raise InputError(folder, "holds a run's checkpoints and logs, not its adapter", f"name {output}")
    if is_run_dir or is_unfinished(folder):
        saved = last_checkpoint(run_dir)
        command = train_command(part_of(saved) if saved else part, output)
        if saved is None:
            raise InputError(folder, f"not trained yet: {run_dir} has no saved step", f"{command} starts again")
        problem = f"unfinished: {run_dir} is at step {checkpoint_step(saved)}"
        raise InputError(folder, problem, f"{command} resumes it")
