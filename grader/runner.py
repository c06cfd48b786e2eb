"""Starts the child process that runs a part of a bundle, and takes its answers. Scores nothing, believes nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .worker import MAX_ANSWER

CHILD = Path(__file__).with_name("worker.py")
MAX_PARAMETERS = 300_000_000
COURSE_SAMPLES = 128  # how many the course's grader asks of each model
SPLIT = "valid_grader"
TOKENIZER = Path(__file__).parent.parent / "homework" / "weights" / "tux_nano"
MEMORY = 8_000_000_000  # bytes; 300 million parameters in float32, read and converted, take 3 billion
MAX_OUTPUT = 16_000_000  # bytes of a child's answers; 2,000 long ones have a tenth
MAX_THREADS = 1000  # torch starts two or three a core
POLL = 0.1  # seconds between two looks at a child
# What a child may know of the environment: all else, tokens and paths, stays here.
ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SYSTEMROOT")

_children: set[subprocess.Popen] = set()
_stopped = threading.Event()


class PartError(Exception):
    """One line: why a part has no answers."""


@dataclass(frozen=True)
class Run:
    """What a part of a bundle did: its answers, and what the parent measured."""

    parameters: int
    load_seconds: float
    answer_seconds: float
    records: list[dict]


def run_part(part: str, root: Path, timeout: float, tokenizer: str | Path = TOKENIZER, memory: int = MEMORY) -> Run:
    """The answers of one of the models of the bundle that lies unpacked in `root`, its data beside it.

    Args:
        part: `vlm` or `clip`.
        timeout: seconds from the process's start to its last answer, loading included.
        memory: bytes that the process may fill.

    Raises:
        PartError: it failed, took too long, is too large, or sent something else than answers.
    """
    job = _job(root, part, tokenizer, memory) | {"missing": list(not_enforced())}
    start = time.monotonic()
    lines, status = _communicate(job, root, timeout)
    if status:
        how = f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"
        raise PartError(f"the process {how} before it had answered")
    messages = [_message(line) for _, line in lines]
    for message in messages:
        if isinstance(message.get("error"), str):
            raise PartError(printable(message["error"]))
    if len(messages) < 2:
        raise PartError("the process ended before it had answered")
    (loaded, _), (answered, _) = lines[:2]
    parameters = _parameters(messages[0])
    return Run(parameters, loaded - start, answered - loaded, _records(messages[1], part))


@cache
def not_enforced() -> tuple[str, ...]:
    """Which limits this system can't enforce, a line each: asked of a child that has no bundle.

    Raises:
        PartError: no process can be shut in here.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="grader-") as name:
        root = Path(name).resolve()
        lines, _ = _communicate(_job(root, None, "", MEMORY) | {"missing": []}, root, timeout=60)
    message = _message(lines[0][1]) if lines else {"error": "the process ended without a word"}
    if "error" in message:
        raise PartError(f"no process can be shut in here: {message['error']}")
    return tuple(message["missing"])


def stop_all() -> None:
    """Kill every child that runs now, and start no other: the grader was interrupted."""
    _stopped.set()
    for child in list(_children):
        _kill(child)


def is_stopped() -> bool:
    """Whether `stop_all` was called."""
    return _stopped.is_set()


def _job(root: Path, part: str | None, tokenizer: str | Path, memory: int) -> dict:
    tokenizer = str(Path(tokenizer).resolve()) if Path(tokenizer).exists() else str(tokenizer)  # or a hub name
    limits = {"max_parameters": MAX_PARAMETERS, "course_samples": COURSE_SAMPLES, "memory": memory}
    names = {"part": part, "root": str(root), "split": SPLIT, "tokenizer": tokenizer, "hub": str(_hub())}
    return {**names, **limits, "parent": os.getpid()}


def _hub() -> Path:
    """The hub's cache of models. The folder above it holds a token, which is no child's business."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser().resolve()


def _environment(root: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    work = str(root / "work")
    nobody = {"HOME": work, "USER": "nobody", "LOGNAME": "nobody", "HF_HOME": work}
    # No program can be started, so none is found: without a PATH, Python searches /bin and /usr/bin. ctypes, for example,
    # looks for a compiler when CUDA builds of torch are imported, and writes a file for it before it runs it.
    no_programs = {"PATH": ""}
    offline = {"HF_HUB_CACHE": str(_hub()), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # libgomp's threads spin for milliseconds while they wait, against each other where other work has the cores: two
    # parts beside six busy processes took 20 s instead of 66 to 247, and 13 s on a quiet machine as before
    spin = {"GOMP_SPINCOUNT": "1000"}
    # a GPU's device files reach its driver, which no sandbox shuts off: a bundle runs on the CPU
    rest = {"CUDA_VISIBLE_DEVICES": "", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    caches = {"TORCHINDUCTOR_CACHE_DIR": work}  # torch makes it on import, unless it is there
    return kept | nobody | no_programs | offline | spin | rest | caches


class _Reader(threading.Thread):
    """Takes what a child writes, up to a bound, and when each of the two lines was whole."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream, self.data, self.times = stream, bytearray(), []

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while len(self.data) <= MAX_OUTPUT and (chunk := os.read(self.stream.fileno(), 1 << 20)):
                self.data += chunk
                self.times += [time.monotonic()] * min(chunk.count(b"\n"), 2 - len(self.times))

    def lines(self) -> list[tuple[float, bytes]]:
        """At most two, with their times."""
        return list(zip(self.times, bytes(self.data).split(b"\n", 2), strict=False))


def _communicate(job: dict, root: Path, timeout: float) -> tuple[list[tuple[float, bytes]], int]:
    """The lines that the child writes, with their times, and its exit status. Nothing of it is left running."""
    # An empty working folder: a bundle that finds its files through the repository's would fail elsewhere.
    folder = root / "work"
    folder.mkdir(exist_ok=True)
    # -P: the script's own folder is no place to import from, so that `homework` is the bundle's alone.
    command = [sys.executable, "-P", str(CHILD), json.dumps(job)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    deadline = time.monotonic() + timeout
    child = subprocess.Popen(command, cwd=folder, env=_environment(root), start_new_session=True, **pipes)
    _children.add(child)
    reader = _Reader(child.stdout)
    try:
        reader.start()
        while reader.is_alive() or child.poll() is None:
            reader.join(POLL) if reader.is_alive() else time.sleep(POLL)
            if len(reader.data) > MAX_OUTPUT:
                raise PartError(f"stopped: it sent more than {MAX_OUTPUT / 1e6:.0f} MB")
            # with a second's grace for what a child that has ended wrote at last
            if time.monotonic() > deadline + (child.poll() is not None):
                raise PartError(f"stopped: over the limit of {timeout:g} s (--timeout allows more)")
            if _stopped.is_set():
                raise PartError("stopped: the grader was interrupted")
            if _threads(child.pid) > MAX_THREADS:
                raise PartError(f"stopped: more than {MAX_THREADS} threads")
        return reader.lines(), child.returncode
    finally:
        _kill(child)
        child.wait()
        _children.discard(child)
        reader.join(1)  # its end of the pipe closes with the child
        child.stdout.close()


def _kill(child: subprocess.Popen) -> None:
    """The child and all of its process group; where there are no groups, the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def _threads(pid: int) -> int:
    """How many threads a process has; 0 where /proc doesn't tell."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def printable(text: str) -> str:
    """One short line that moves no cursor."""
    return "".join(character if character.isprintable() else " " for character in text[:400])


def _message(line: bytes) -> dict:
    def refuse(name: str):
        raise ValueError(name)  # NaN and Infinity are no JSON

    try:
        message = json.loads(line, parse_constant=refuse)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise PartError("the process sent something else than answers")
    return message


def _parameters(message: dict) -> int:
    count = message.get("loaded")
    if type(count) is not int or count < 0:
        raise PartError("the process sent no number of parameters")
    if count > MAX_PARAMETERS:
        raise PartError(f"{count:,} parameters, more than {MAX_PARAMETERS:,}")
    return count


def _records(message: dict, part: str) -> list[dict]:
    def is_asked(asked) -> bool:
        if part == "vlm":
            return isinstance(asked, str)
        return isinstance(asked, list) and all(isinstance(candidate, str) for candidate in asked)

    def is_record(record) -> bool:
        if not isinstance(record, dict) or set(record) != {"image", "asked", "answer"}:
            return False
        image, answer = record["image"], record["answer"]
        texts = isinstance(image, str) and isinstance(answer, str)
        return texts and len(answer) <= MAX_ANSWER and is_asked(record["asked"])

    records = message.get("records")
    if not isinstance(records, list) or not all(map(is_record, records)):
        raise PartError("the process sent something else than answers")
    return records


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
