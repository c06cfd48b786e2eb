"""Starts the child process that runs a part of a bundle, and takes its answers. Scores nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")
MAX_PARAMETERS = 300_000_000
COURSE_SAMPLES = 128  # how many the course's grader asks of each model
SPLIT = "valid_grader"
TOKENIZER = Path(__file__).parent.parent / "homework" / "tux_nano"


class PartError(Exception):
    """One line: why a part has no answers."""


def run_part(part: str, root: Path, timeout: float, tokenizer: str | Path = TOKENIZER) -> dict:
    """The answers of one of the models of the bundle that lies unpacked in `root`.

    Args:
        part: `vlm` or `clip`.
        timeout: seconds from the process's start to its last answer, loading included.

    Returns:
        see `child.run`.

    Raises:
        PartError: it failed, took too long, or is too large.
    """
    tokenizer = str(Path(tokenizer).resolve()) if Path(tokenizer).exists() else str(tokenizer)  # or a hub name
    limits = {"max_parameters": MAX_PARAMETERS, "course_samples": COURSE_SAMPLES}
    job = {"part": part, "root": str(root), "split": SPLIT, "tokenizer": tokenizer, **limits}
    output, status = _communicate(job, root, timeout)
    if status:
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        raise PartError(f"the process {how} before it had answered")
    try:
        result = json.loads(output)
    except ValueError:
        raise PartError("the process ended before it had answered") from None
    if "error" in result:
        raise PartError(result["error"])
    if result["parameters"] > MAX_PARAMETERS:
        raise PartError(f"{result['parameters']:,} parameters, more than {MAX_PARAMETERS:,}")
    return result


def _communicate(job: dict, root: Path, timeout: float) -> tuple[bytes, int]:
    """What the child writes, and its exit status. Nothing of its process group is left running."""
    # An empty working folder: a bundle that finds its files through the repository's would fail elsewhere.
    folder = root / "work"
    folder.mkdir(exist_ok=True)
    # -P: the script's own folder is no place to import from, so that `homework` is the bundle's alone.
    command = [sys.executable, "-P", str(CHILD), json.dumps(job)]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen(command, cwd=folder, env=os.environ | offline, start_new_session=True, **pipes)
    try:
        output, _ = child.communicate(timeout=timeout)
        return output, child.returncode
    except subprocess.TimeoutExpired:
        raise PartError(f"stopped: over the limit of {timeout:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
