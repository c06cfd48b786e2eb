"""Processes that hold the engine: how they are started, and how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE = 5.0  # seconds that an interrupted process has to take its temporary files away

_running: set[subprocess.Popen] = set()


def stop_all() -> None:
    """Interrupt every process that runs now, as Ctrl-C at a terminal does; kill what is there after `PATIENCE`."""
    running, end = list(_running), time.monotonic() + PATIENCE
    for process in running:
        process.send_signal(signal.SIGINT)
    for process in running:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


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
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(
        [str(python), "-m", module, *map(str, arguments)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
        errors="replace",
        **streams,
    )
    with process:
        _running.add(process)
        try:
            out, err = process.communicate(text, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"it took more than {limit} s"
        finally:
            process.kill()  # no more than a word to one that has ended
            _running.discard(process)
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"the engine died of signal {-process.returncode}"
    return (err.strip() or out.strip() or f"status {process.returncode}").splitlines()[-1]


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
