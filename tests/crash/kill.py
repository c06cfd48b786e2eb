"""Kill commands at random moments and check that, restarted, they finish: `python -m tests.crash.kill`.

Each command runs once undisturbed. Then, for each moment, it is started in a fresh folder and killed (SIGKILL, with all
its processes). No incomplete file may have a final name. It is started again, to the end, and must give the undisturbed
result.

With `--changes` the moments are not times but file system changes (a file opened for writing, renamed, removed), so
that a step of a millisecond is hit as often as one of a minute. `dying/sitecustomize.py` implements that.
"""

import argparse
import contextlib
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .commands import COMMANDS, ROOT, Command, why_missing

DYING = Path(__file__).parent / "dying"
TIMEOUT_SECONDS = 600  # after which a restarted run counts as hanging
FINAL_HIDDEN_FOLDERS = (".cache", ".races")  # hidden folders whose files are read under their names


class Broken(Exception):
    """A broken guarantee."""


def is_final(path: Path) -> bool:
    """Return whether a file's name marks it as complete: neither hidden nor .part, nor in a temporary folder."""
    if path.name.startswith(".") or path.name.endswith(".part"):
        return False
    return all(not part.startswith(".") or part in FINAL_HIDDEN_FOLDERS for part in path.parts[:-1])


def in_unfinished_checkpoint(path: Path) -> bool:
    """Return whether a file is in a checkpoint without `trainer_state.json`, which `last_checkpoint` skips."""
    if not path.parent.name.startswith("checkpoint-"):
        return False
    try:
        json.loads((path.parent / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return True
    return False


def check(path: Path) -> None:
    """Read a file completely, by its suffix.

    Raises:
        Exception: it is incomplete; each reader raises its own errors.
    """
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix in (".zip", ".pt", ".pth"):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError("not a complete zip")
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        load_file(path)
    elif path.suffix == ".jpg":
        from PIL import Image

        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".npy":
        import numpy as np

        np.load(path)


def incomplete_files(folder: Path) -> Iterator[str]:
    """Yield the files under a final name that are incomplete."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.stat().st_nlink > 1:  # hard links are the command's inputs
            continue
        if is_final(path.relative_to(folder)) and not in_unfinished_checkpoint(path):
            try:
                check(path)
            except Exception as error:
                yield f"{path.relative_to(folder)} ({type(error).__name__}: {error})"
    # a checkpoint that counts as complete has everything that resuming reads
    for state in folder.rglob("checkpoint-*/trainer_state.json"):
        names = {path.name for path in state.parent.iterdir()}
        lacks = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} - names
        if lacks and not in_unfinished_checkpoint(state):
            yield f"{state.parent.relative_to(folder)} lacks {', '.join(sorted(lacks))}"


class Forked:
    """Run a function in a fork of this process, which has done the slow imports, in its own session."""

    def __init__(self, work: Callable[[], None], log: Path, variables: dict[str, str]):
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(work, log, variables)

    def _run(self, work: Callable[[], None], log: Path, variables: dict[str, str]) -> None:
        status = 1
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(stream, 1), os.dup2(stream, 2)
            os.environ.update(variables)
            watcher = runpy.run_path(str(DYING / "sitecustomize.py")) if variables else {}
            try:
                work()
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(error.code is not None)
                print(error, file=sys.stderr)
            if variables.get("DIE_COUNT"):
                watcher["write_count"]()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, timeout: float | None = None) -> int:
        """Wait like `Popen.wait`."""
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                raise subprocess.TimeoutExpired("a forked command", timeout)
            else:
                time.sleep(0.005)
        return self.returncode


def start(command: Command, folder: Path, log: Path, **variables: str) -> subprocess.Popen | Forked:
    """Start the command in its own process group."""
    if command.work:
        return Forked(partial(command.work, folder), log, variables)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if variables:
        environment |= variables | {"PYTHONPATH": os.pathsep.join(map(str, (DYING, ROOT)))}
    with open(log, "a") as stream:
        return subprocess.Popen(
            command.line(folder), cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )


def kill(process: subprocess.Popen | Forked) -> None:
    """Kill the process and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(command: Command, folder: Path, log: Path, **variables: str) -> float:
    """Run the command to its end; return the seconds it took.

    Raises:
        Broken: it fails or hangs; with its last line of output.
    """
    begin = time.monotonic()
    process = start(command, folder, log, **variables)
    try:
        status = process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise Broken(f"it hung for {TIMEOUT_SECONDS} s; see {log}") from None
    finally:
        kill(process)
    if status:
        raise Broken(f"exit status {status}: {(log.read_text().strip().splitlines() or [''])[-1]}")
    return time.monotonic() - begin


def disturb(command: Command, folder: Path, expected, moment: float, by_change: bool) -> tuple[bool, int]:
    """Kill the command at a moment (seconds, or the number of a change), then run it to its end.

    Returns:
        (whether it was still running when killed, number of temporary files left).

    Raises:
        Broken: an incomplete file has a final name, or the result differs from the undisturbed one.
    """
    command.prepare(folder)
    log = folder.with_suffix(".log")
    if by_change:
        process = start(command, folder, log, DIE_IN=str(folder), DIE_AT=str(moment))
    else:
        process = start(command, folder, log)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TIMEOUT_SECONDS if by_change else moment)
    kill(process)
    killed = process.returncode == -signal.SIGKILL
    incomplete = list(incomplete_files(folder))
    if incomplete:
        raise Broken(f"incomplete: {'; '.join(incomplete)}")
    left = sum(path.is_file() and not is_final(path.relative_to(folder)) for path in folder.rglob("*"))
    finish(command, folder, log)
    incomplete = list(incomplete_files(folder))
    if incomplete:
        raise Broken(f"incomplete: {'; '.join(incomplete)}")
    if not command.is_same(expected, command.result(folder)):
        raise Broken("the result differs from the undisturbed run's")
    return killed, left


def choose_moments(command: Command, folder: Path, count: int, seed: int, by_change: bool) -> tuple[list, object, str]:
    """Run undisturbed; return the moments for the next runs, the result, and the length of the run in words."""
    command.prepare(folder)
    counter = folder.with_suffix(".count")
    variables = {"DIE_IN": str(folder), "DIE_COUNT": str(counter)} if by_change else {}
    seconds = finish(command, folder, folder.with_suffix(".log"), **variables)
    rng = random.Random(f"{command.name} {seed}")
    if not by_change:
        return sorted(rng.uniform(0, seconds) for _ in range(count)), command.result(folder), f"{seconds:.1f} s"
    changes = int(counter.read_text())
    moments = sorted(rng.sample(range(1, changes + 1), min(count, changes)))
    return moments, command.result(folder), f"{changes} changes"


def count_broken(
    name: str, count: int, seed: int, by_change: bool = False, report: Callable[[str], None] = print
) -> int:
    """Kill a command at `count` moments; return at how many it broke a guarantee."""
    broken = killed = 0
    with tempfile.TemporaryDirectory(prefix="kill-") as place:
        place = Path(place)
        (place / "shared").mkdir()
        command = COMMANDS[name](place / "shared")
        try:
            moments, expected, length = choose_moments(command, place / "undisturbed", count, seed, by_change)
            report(f"{name}: undisturbed {length}")
            for number, moment in enumerate(moments, 1):
                when = f"at change {moment}" if by_change else f"after {moment:.2f} s"
                folder = place / f"run{number}"
                try:
                    was_running, left = disturb(command, folder, expected, moment, by_change)
                    while not (was_running or by_change) and moment > 0.05:  # finished before: kill it earlier
                        shutil.rmtree(folder)
                        moment *= 0.7
                        when = f"after {moment:.2f} s"
                        was_running, left = disturb(command, folder, expected, moment, by_change)
                    killed += was_running
                    words = (
                        f"{'killed' if was_running else 'finished before'}, {left} temporary files left, same result"
                    )
                    shutil.rmtree(folder)
                except Broken as error:
                    broken += 1
                    words = f"BROKEN: {error}"
                report(f"{name} {number:2}/{len(moments)} {when}: {words}")
        finally:
            command.close()
    report(f"{name}: {len(moments)} moments, {killed} killed while running, {broken} broken")
    return broken


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m tests.crash.kill", description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"{', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--moments", type=int, default=20, help="kills per command (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument("--changes", action="store_true", help="kill at file system changes, not at times")
    options = parser.parse_args()
    unknown = set(options.commands) - set(COMMANDS)
    if unknown:
        parser.error(f"unknown command {', '.join(sorted(unknown))}; choose from {', '.join(COMMANDS)}")
    broken = 0
    for name in options.commands or COMMANDS:
        reason = why_missing(name)
        if reason:
            print(f"{name}: skipped: {reason}")
        else:
            broken += count_broken(name, options.moments, options.seed, options.changes, lambda t: print(t, flush=True))
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
