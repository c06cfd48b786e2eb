"""Run one part of a bundle in a worker process and validate what it sends. Nothing is scored here."""

import contextlib
import json
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from homework.utils.errors import InputError, make_printable

from .process import PartError, communicate
from .sandbox import landlock
from .worker import MAX_ANSWER_CHARS, MAX_PARAMETERS

DEFAULT_TOKENIZER = Path(__file__).parent.parent / "homework" / "weights" / "tux_nano"
MAX_QUOTE_CHARS = 400


@dataclass(frozen=True)
class PartRun:
    """Hold the answers of one part of a bundle, and what the grader's process measured."""

    num_parameters: int
    load_seconds: float
    answer_seconds: float
    records: list[dict]


@dataclass(frozen=True)
class Sandbox:
    """Hold what a worker without a bundle found out about the sandbox of this system and Python."""

    unenforced: list[str]  # limits, one line each
    readable: list[str]  # paths that any bundle may read
    version: int  # of Landlock's ABI

    def describe(self) -> str:
        """Return the version of Landlock and what it does not cover in one line."""
        if not self.version:
            return "sandbox: no Landlock"
        gaps = ", ".join(landlock.list_gaps(self.version))
        gaps = gaps and f", which does not cover {gaps}" + ("" if self.unenforced else ": seccomp does")
        return f"sandbox: Landlock ABI {self.version}{gaps}"


def run_part(
    part: str, root: Path, timeout: float, tokenizer: str | Path | None = None, python: str = sys.executable
) -> PartRun:
    """Run one model, `vlm` or `clip`, of the bundle unpacked in `root`, its data beside it.

    Args:
        timeout: seconds from the start of the process to its last answer, loading included.
        tokenizer: folder or hub name of CLIP's tokenizer.
        python: the interpreter, whose environment has the bundle's libraries.

    Raises:
        PartError: the worker failed, took too long, is too large, or sent malformed output.
    """
    unenforced = probe_sandbox(python, tokenizer).unenforced
    job = {"part": part, "root": str(root), "tokenizer": _locate(tokenizer), "unenforced": unenforced}
    start = time.monotonic()
    lines, status = communicate(job, timeout, python)
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
def probe_sandbox(python: str = sys.executable, tokenizer: str | Path | None = None) -> Sandbox:
    """Return what the sandbox enforces with an interpreter, found by a worker without a bundle.

    Raises:
        InputError: the sandbox cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="grader-") as name:
        root = str(Path(name).resolve())
        job = {"part": None, "root": root, "tokenizer": _locate(tokenizer), "unenforced": []}
        try:
            lines, status = communicate(job, 60, python)
            message = _parse_message(lines[0][1]) if lines else {"error": f"the process exited with status {status}"}
        except PartError as error:
            message = {"error": str(error)}
    if "error" in message:
        remedy = "use a --python of version 3.11 or newer, as a user who may read its libraries without root's rights"
        raise InputError(python, f"cannot start the sandbox: {message['error']}", remedy)
    readable = [path for path in message["readable"] if not Path(path).is_relative_to(root)]
    return Sandbox(message["unenforced"], readable, landlock.find_abi_version())


def check_answers_are_hidden(sandbox: Sandbox, data: Path) -> None:
    """Check that no file with answers lies where every bundle may read.

    Raises:
        InputError: one does.
    """
    folders = [data, *filter(Path.is_dir, data.iterdir())]
    links = (file for folder in folders for file in folder.glob("*.json") if file.is_symlink())
    for place in (*folders, *links):
        for path in sandbox.readable:
            if place.resolve().is_relative_to(path):
                problem = f"its answers lie in {path}, which every bundle may read"
                raise InputError(place, problem, "move the data, or give another folder with --data")


def _locate(tokenizer: str | Path | None) -> str:
    tokenizer = tokenizer or DEFAULT_TOKENIZER
    return str(Path(tokenizer).resolve() if Path(tokenizer).exists() else tokenizer)


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
