"""Processes that hold an engine: how they are started, and how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TERMINATE_TIMEOUT_S = 5.0  # for an interrupted process to remove its temporary files

_running: set[subprocess.Popen] = set()


def interrupt_all() -> None:
    """Interrupt every running process, as Ctrl-C at a terminal does; kill those that have not ended in time."""
    running, end = list(_running), time.monotonic() + TERMINATE_TIMEOUT_S
    for process in running:
        process.send_signal(signal.SIGINT)
    while any(process.poll() is None for process in running) and time.monotonic() < end:
        time.sleep(0.05)
    for process in running:
        process.kill()


def run_module(
    module: str,
    *arguments: str | Path,
    stdin: str,
    environment: dict[str, str],
    timeout: float,
    python: Path = Path(sys.executable),
) -> str | None:
    """Run `python -m module` in a process of its own, killed after `timeout` seconds; the caller survives its crash.

    Returns:
        None on success, else the reason of the failure.
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
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"it took more than {timeout} s"
        finally:
            process.kill()  # no-op if it has already exited
            _running.discard(process)
    if process.returncode == 0:
        return None
    if process.returncode < 0:
        return f"the engine died of signal {-process.returncode}"
    return (err.strip() or out.strip() or f"status {process.returncode}").splitlines()[-1]


def run_and_exit(work: Callable[[], None]) -> None:
    """Run a process's work, print an error to stderr, and end without the engine's own exit, which may crash."""
    status = 0
    try:
        work()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
