"""Processes that hold the engine: how they are started, and how they end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run(
    module: str,
    *arguments: str | Path,
    text: str,
    environment: dict[str, str],
    limit: float,
    python: Path = Path(sys.executable),
) -> str | None:
    """Run `python -m module` in a process of its own, whatever becomes of it.

    Args:
        module: with its package.
        arguments: of its command line.
        text: for its standard input.
        environment: see `art.environment`.
        limit: seconds after which it is given up.
        python: the interpreter.

    Returns:
        None if it ended well, else why it didn't.
    """
    try:
        done = subprocess.run(
            [str(python), "-m", module, *map(str, arguments)],
            input=text,
            env=environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {limit} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"the engine died of signal {-done.returncode}"
    return (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]


def end_after(work: Callable[[], None]) -> None:
    """Do a process's work, say on stderr why it failed, and end without the engine's exit, which may crash."""
    try:
        work()
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
