"""Run one part of a bundle in a worker process and validate what it sends. Nothing is scored here."""

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from homework.utils.errors import InputError, make_printable

from .worker import MAX_ANSWER_CHARS, MAX_PARAMETERS

WORKER_SCRIPT = Path(__file__).with_name("worker.py")
DEFAULT_TOKENIZER = Path(__file__).parent.parent / "homework" / "weights" / "tux_nano"
MAX_MEMORY_BYTES = 8_000_000_000  # 300 million float32 parameters, read and converted, take 3 billion
MAX_OUTPUT_BYTES = 16_000_000  # 2,000 long answers take a tenth of it
MAX_THREADS = 1000  # torch starts two or three per core
MAX_QUOTE_CHARS = 400
POLL_SECONDS = 0.1
# A worker gets no other variables: they may hold tokens and paths.
INHERITED_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SYSTEMROOT")

stop_requested = threading.Event()
_workers: set[subprocess.Popen] = set()


class PartError(Exception):
    """Report in one line why a part has no answers."""


@dataclass(frozen=True)
class PartRun:
    """Hold the answers of one part of a bundle, and what the grader's process measured."""

    num_parameters: int
    load_seconds: float
    answer_seconds: float
    records: list[dict]


def run_part(part: str, root: Path, timeout: float, tokenizer: str | Path | None = None) -> PartRun:
    """Run one model, `vlm` or `clip`, of the bundle unpacked in `root`, its data beside it.

    Args:
        timeout: seconds from the start of the process to its last answer, loading included.
        tokenizer: folder or hub name of CLIP's tokenizer.

    Raises:
        PartError: the worker failed, took too long, is too large, or sent malformed output.
    """
    tokenizer = tokenizer or DEFAULT_TOKENIZER
    if Path(tokenizer).exists():
        tokenizer = Path(tokenizer).resolve()
    job = {"part": part, "root": str(root), "tokenizer": str(tokenizer), "unenforced": unenforced_limits()}
    start = time.monotonic()
    lines, status = _communicate(job, timeout)
    if status:
        name = next((s.name for s in signal.Signals if s == -status), f"signal {-status}")
        how = f"was killed by {name}" if status < 0 else f"exited with status {status}"
        raise PartError(f"the process {how} before answering")
    messages = [_parse_message(line) for _, line in lines]
    for message in messages:
        if isinstance(message.get("error"), str):
            raise PartError(quote_bundle(message["error"]))
    if len(messages) < 2:
        raise PartError("the process exited before answering")
    (loaded, _), (answered, _) = lines
    count, records = messages[0].get("num_parameters"), messages[1].get("records")
    if type(count) is not int or count < 0:
        raise PartError("the process sent an invalid number of parameters")
    if count > MAX_PARAMETERS:
        raise PartError(f"{count:,} parameters, more than {MAX_PARAMETERS:,}")
    if not isinstance(records, list) or not all(_is_record(record, part) for record in records):
        raise PartError("the process sent malformed output")
    return PartRun(count, loaded - start, answered - loaded, records)


@cache
def unenforced_limits() -> list[str]:
    """Return the limits that this system cannot enforce, found by a worker without a bundle.

    Raises:
        InputError: the sandbox cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="grader-") as name:
        root = str(Path(name).resolve())
        lines, _ = _communicate({"part": None, "root": root, "tokenizer": "", "unenforced": []}, 60)
    message = _parse_message(lines[0][1]) if lines else {"error": "the process exited without a message"}
    if "error" in message:
        raise InputError("this system", f"cannot start the sandbox: {message['error']}", "grade on another system")
    return message["unenforced"]


def stop_workers() -> None:
    """Kill all workers and let no others run, as the grader was interrupted."""
    stop_requested.set()
    for worker in list(_workers):
        _kill(worker)


def _hub_cache() -> str:
    """Return the hub's cache of models. The folder above it holds a token that no worker may read."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return str(Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser().resolve())


def _make_environment(work: str) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
        **{"HOME": work, "USER": "nobody", "LOGNAME": "nobody", "HF_HOME": work},
        # Empty, as no program can be started; without a PATH Python searches /bin and /usr/bin. On the import of a CUDA
        # build of torch, ctypes would find a compiler and write a file for it.
        "PATH": "",
        **{"HF_HUB_CACHE": _hub_cache(), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        # libgomp's threads spin for milliseconds while they wait, and block each other if other jobs use the cores: two
        # parts beside six busy processes took 20 s instead of 66 to 247 s, and 13 s on an idle machine as before.
        "GOMP_SPINCOUNT": "1000",
        "CUDA_VISIBLE_DEVICES": "",  # CPU only: a GPU's device files lead to a driver that no sandbox covers
        **{"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        "TORCHINDUCTOR_CACHE_DIR": work,  # torch creates it on import unless it exists
    }


def _communicate(job: dict, timeout: float) -> tuple[list[tuple[float, bytes]], int]:
    """Run a worker to its end or kill it; return two lines with their arrival times, and its status."""
    # An empty working directory: a bundle that relied on the repository's files would fail elsewhere.
    work = Path(job["root"], "work")
    work.mkdir(exist_ok=True)
    # -P: do not import from the script's folder, so that `homework` is the bundle's.
    arguments = json.dumps(job | {"memory": MAX_MEMORY_BYTES, "hub": _hub_cache(), "parent": os.getpid()})
    command = [sys.executable, "-P", str(WORKER_SCRIPT), arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    start = time.monotonic()
    worker = subprocess.Popen(command, cwd=work, env=_make_environment(str(work)), start_new_session=True, **pipes)
    _workers.add(worker)
    output, times = bytearray(), []

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while len(output) <= MAX_OUTPUT_BYTES and (chunk := os.read(worker.stdout.fileno(), 1 << 20)):
                output.extend(chunk)
                times.extend([time.monotonic()] * min(chunk.count(b"\n"), 2 - len(times)))

    reader = threading.Thread(target=read, daemon=True)
    try:
        reader.start()
        while reader.is_alive() or worker.poll() is None:
            reader.join(POLL_SECONDS) if reader.is_alive() else time.sleep(POLL_SECONDS)
            seconds = time.monotonic() - start
            if len(output) > MAX_OUTPUT_BYTES:
                raise PartError(f"stopped: sent more than {MAX_OUTPUT_BYTES / 1e6:.0f} MB")
            # one second more for the last output of a worker that has exited
            if seconds > timeout + (worker.poll() is not None):
                raise PartError(f"stopped: exceeded the time limit of {timeout:g} s (raise it with --timeout)")
            if stop_requested.is_set():
                raise PartError("stopped: the grader was interrupted")
            if len(glob.glob(f"/proc/{worker.pid}/task/*")) > MAX_THREADS:  # none without /proc
                raise PartError(f"stopped: more than {MAX_THREADS} threads")
        return list(zip(times, bytes(output).split(b"\n", 2), strict=False)), worker.returncode
    finally:
        _kill(worker)
        worker.wait()
        _workers.discard(worker)
        reader.join(1)  # its end of the pipe closes with the worker
        worker.stdout.close()


def _kill(worker: subprocess.Popen) -> None:
    """Kill a worker's process group; on systems without groups, the worker."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL) if hasattr(os, "killpg") else worker.kill()


def quote_bundle(text: str) -> str:
    """Return what a worker says as a quotation, on one short line: the bundle may have written it."""
    return 'the bundle says "{}"'.format(make_printable(text, MAX_QUOTE_CHARS).replace('"', "'"))


def _parse_message(line: bytes) -> dict:
    def refuse(name: str):
        raise ValueError(name)  # NaN and Infinity are not JSON

    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line, parse_constant=refuse)
        if isinstance(message, dict):
            return message
    raise PartError("the process sent malformed output")


def _is_record(record, part: str) -> bool:
    if not isinstance(record, dict) or set(record) != {"image", "query", "answer"}:
        return False
    query = [record["query"]] if part == "vlm" else record["query"]
    texts = [record["image"], record["answer"], *query] if isinstance(query, list) else [None]
    return all(isinstance(text, str) for text in texts) and len(record["answer"]) <= MAX_ANSWER_CHARS
