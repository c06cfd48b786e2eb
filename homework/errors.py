"""Errors that a user can act on: one line that names the file and the remedy."""

import contextlib
import difflib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST = 2**32  # NumPy takes no larger seed


class InputError(ValueError):
    """Bad input. `str(error)` is one line: the file, what is wrong with it, what to do."""

    status = 1

    def __init__(self, path: str | Path, problem: str, remedy: str):
        super().__init__(path, problem, remedy)  # all three in `args`, so that a worker process can pass it on

    def __str__(self) -> str:
        # a file's name may hold a line break
        return "{}: {}; {}".format(*self.args).replace("\n", "\\n").replace("\r", "\\r")


class UsageError(InputError):
    """A flag's value that can't be."""

    status = 2


def at_least(least: float, **flags: float | None) -> None:
    """Check numbers that are given as flags; None stands for the default.

    Raises:
        UsageError: one of them is less, larger than libraries take a seed, or no number.
    """
    for name, value in flags.items():
        if value is not None and not least <= value < MOST:
            problem = f"{value:,}" if isinstance(value, int) else f"{value:g}"
            raise UsageError(f"--{name.replace('_', '-')}", problem, f"give {least:g} or more, under {MOST:,}")


def first_line(error: Exception) -> str:
    """What a library's error says, for a message of one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy for a name that is not known: the nearest known one, else something else to do."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {nearest[0]}? Else {otherwise}" if nearest else otherwise


def no_folder(folder: Path, problem: str, otherwise: str) -> InputError:
    """The error for a folder that is not there: it names the nearest one beside it, or something else to do."""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    return InputError(folder, problem, did_you_mean(folder.name, beside, otherwise))


def no_split(folder: Path, problem: str) -> InputError:
    """The error for a split's folder that is not there."""
    return no_folder(folder, problem, "run `python -m supertux download`")


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an `InputError`, a full disk or Ctrl-C inside a command into one line and an exit status.

    Raises:
        SystemExit: 1 for bad input or a failed write, 2 for a flag's value that can't be, 130 for an interrupted run,
            141 where nobody reads on.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except BrokenPipeError:  # whoever reads the output has had enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {name}{error.strerror}; check the path, its permissions and the free space, then run again")
    except KeyboardInterrupt:
        print("interrupted: finished files are kept; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None


def read_json(path: str | Path):
    """The parsed content of a JSON file.

    Raises:
        InputError: the file is missing, or it is not JSON.
    """
    with reading(path) as text:
        content = json.loads(text)
        if re.search(rb"\\u[dD][89a-fA-F]", text):  # half a character is no text: it can't be printed or written
            json.dumps(content, ensure_ascii=False).encode()
        return content


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[bytes]:
    """What a JSON file holds, for a block that parses it.

    Raises:
        InputError: the file is missing, or the block finds that it is not JSON.
    """
    try:
        yield Path(path).read_bytes()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path, or run `python -m supertux download`") from None
    except (ValueError, RecursionError) as error:
        problem = f"not readable as JSON ({first_line(error)})"
        raise InputError(path, problem, "restore or delete the file") from None


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Give an `OSError` that names no file, as that of a full disk does, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` only if the block ends well.

    A run that dies half-way leaves the old file, or none, but never half of a new one.
    """
    path = Path(path)
    _require_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        error.filename = str(path)  # it names the temporary file
        raise
    os.close(handle)
    try:
        with naming(path):
            yield Path(name)
        usual_rights(name)  # mkstemp makes 0600
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def usual_rights(file: str | Path) -> None:
    """Give a file the rights that a new one gets: libraries make some that nobody else can read."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)


def require_writable(path: str | Path, folder: bool = False) -> None:
    """Say before the work what writing to `path` would say after it.

    Args:
        folder: a folder is to be written, no file.

    Raises:
        InputError: it is a folder and should be a file, or where it would lie nothing can be written.
    """
    if not folder:
        _require_file(Path(path))
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(path, f"can't be written: {above} is no folder that may be", "name another place")


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise InputError(path, "is a folder", "name a file")


def write_json(path: str | Path, content) -> None:
    """Write `content` as JSON, whole or not at all. The same content gives the same bytes."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
