"""Kill commands at random moments, and see that they finish all the same: `python -m tests.crash.kill`.

Each command is run once undisturbed. Then, for each moment, it is started in a fresh folder and killed there (SIGKILL,
with all its processes), what it left is looked through for files that are half written under a final name, and it is
started again, to the end. Its result has to be the undisturbed one.

With `--changes` the moments are not times but changes of the file system (a file opened for writing, renamed,
removed): what lasts a millisecond is hit as often as what lasts a minute. `dying/sitecustomize.py` does that.
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

from .commands import COMMANDS, ROOT, Command, missing

DYING = Path(__file__).parent / "dying"
PATIENCE = 600  # seconds after which a run that was started again is said to hang
READ_HIDDEN = (".cache", ".races")  # hidden folders whose files are read under their names


class Broken(Exception):
    """A promise that was not kept."""


def is_final(path: Path) -> bool:
    """Whether a file's name says that it is whole: neither hidden nor .part, nor in a folder that is in the making."""
    if path.name.startswith(".") or path.name.endswith(".part"):
        return False
    return all(not part.startswith(".") or part in READ_HIDDEN for part in path.parts[:-1])


def in_unfinished_checkpoint(path: Path) -> bool:
    """The Trainer's folder is whole once its `trainer_state.json` is; until then `last_checkpoint` passes over it."""
    if not path.parent.name.startswith("checkpoint-"):
        return False
    try:
        json.loads((path.parent / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return True
    return False


def check(path: Path) -> None:
    """Read a whole file by its kind.

    Raises:
        Exception: it is not whole; each reader has errors of its own.
    """
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix in (".zip", ".pt", ".pth"):
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():
                raise ValueError("a broken zip")
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


def half_written(folder: Path) -> Iterator[str]:
    """The files under a final name that are not whole."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.stat().st_nlink > 1:  # linked in: what the command reads
            continue
        if is_final(path.relative_to(folder)) and not in_unfinished_checkpoint(path):
            try:
                check(path)
            except Exception as error:
                yield f"{path.relative_to(folder)} ({type(error).__name__}: {error})"
    # a checkpoint that counts as whole has all that resuming reads
    for state in folder.rglob("checkpoint-*/trainer_state.json"):
        names = {path.name for path in state.parent.iterdir()}
        lacks = {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} - names
        if lacks and not in_unfinished_checkpoint(state):
            yield f"{state.parent.relative_to(folder)} lacks {', '.join(sorted(lacks))}"


class Forked:
    """A process forked from this one, which has imported all that takes long; its session is its own."""

    def __init__(self, work: Callable[[], None], log: Path, variables: dict[str, str]):
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._live(work, log, variables)

    def _live(self, work: Callable[[], None], log: Path, variables: dict[str, str]) -> None:
        status = 1
        try:
            os.setsid()
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(stream, 1), os.dup2(stream, 2)
            os.environ.update(variables)
            watcher = runpy.run_path(str(DYING / "sitecustomize.py")) if variables else {}
            try:
                work()
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(error.code is not None)
                print(error, file=sys.stderr)
            if variables.get("DIE_COUNT"):
                watcher["tell"]()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def wait(self, timeout: float | None = None) -> int:
        """As `Popen.wait`."""
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
    """Start the command in a process group of its own."""
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
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(command: Command, folder: Path, log: Path, **variables: str) -> float:
    """Run the command to its end; the seconds it took.

    Raises:
        Broken: it fails or hangs; with its last words.
    """
    begin = time.monotonic()
    process = start(command, folder, log, **variables)
    try:
        status = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise Broken(f"it hung for {PATIENCE} s; see {log}") from None
    finally:
        kill(process)
    if status:
        raise Broken(f"exit status {status}: {(log.read_text().strip().splitlines() or [''])[-1]}")
    return time.monotonic() - begin


def disturb(command: Command, folder: Path, expected, moment: float, by_change: bool) -> tuple[bool, int]:
    """Kill the command at a moment (seconds, or the number of a change), then finish it.

    Returns:
        (whether it was still running when it was killed, how many temporary files it left).

    Raises:
        Broken: half a file under a final name, or another result than the undisturbed one.
    """
    command.prepare(folder)
    log = folder.with_suffix(".log")
    if by_change:
        process = start(command, folder, log, DIE_IN=str(folder), DIE_AT=str(moment))
    else:
        process = start(command, folder, log)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE if by_change else moment)
    kill(process)
    killed = process.returncode == -signal.SIGKILL
    halves = list(half_written(folder))
    if halves:
        raise Broken(f"half written: {'; '.join(halves)}")
    left = sum(path.is_file() and not is_final(path.relative_to(folder)) for path in folder.rglob("*"))
    finish(command, folder, log)
    halves = list(half_written(folder))
    if halves or not command.same(expected, command.result(folder)):
        raise Broken(f"half written: {'; '.join(halves)}" if halves else "another result than the undisturbed run's")
    return killed, left


def moments_of(command: Command, folder: Path, count: int, seed: int, by_change: bool) -> tuple[list, object, str]:
    """An undisturbed run: (when to kill the next ones, its result, how long it was, in words)."""
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


def survive(name: str, count: int, seed: int, by_change: bool = False, say: Callable[[str], None] = print) -> int:
    """Kill a command at `count` moments; how many of them it did not survive."""
    broken = killed = 0
    with tempfile.TemporaryDirectory(prefix="kill-") as place:
        place = Path(place)
        (place / "shared").mkdir()
        command = COMMANDS[name](place / "shared")
        try:
            moments, expected, length = moments_of(command, place / "undisturbed", count, seed, by_change)
            say(f"{name}: undisturbed {length}")
            for number, moment in enumerate(moments, 1):
                when = f"at change {moment}" if by_change else f"after {moment:.2f} s"
                folder = place / f"run{number}"
                try:
                    was_running, left = disturb(command, folder, expected, moment, by_change)
                    while not (was_running or by_change) and moment > 0.05:  # faster than the undisturbed run was
                        shutil.rmtree(folder)
                        moment *= 0.7
                        when = f"after {moment:.2f} s"
                        was_running, left = disturb(command, folder, expected, moment, by_change)
                    killed += was_running
                    words = f"{'killed' if was_running else 'had ended'}, {left} temporary files left, same result"
                    shutil.rmtree(folder)
                except Broken as error:
                    broken += 1
                    words = f"BROKEN: {error}"
                say(f"{name} {number:2}/{len(moments)} {when}: {words}")
        finally:
            command.close()
    say(f"{name}: {len(moments)} moments, {killed} killed while running, {broken} broken")
    return broken


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m tests.crash.kill", description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default: all")
    parser.add_argument("--moments", type=int, default=20, help="how often each command is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--changes", action="store_true", help="moments are changes of files, not times")
    options = parser.parse_args()
    unknown = set(options.commands) - set(COMMANDS)
    if unknown:
        parser.error(f"no command {', '.join(sorted(unknown))}; there are {', '.join(COMMANDS)}")
    broken = 0
    for name in options.commands or COMMANDS:
        reason = missing(name)
        if reason:
            print(f"{name}: left out: {reason}")
        else:
            broken += survive(name, options.moments, options.seed, options.changes, lambda t: print(t, flush=True))
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
