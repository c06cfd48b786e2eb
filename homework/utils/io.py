"""Read JSON, and write files atomically."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import InputError, first_line


def read_json(path: str | Path):
    """The parsed content of a JSON file.

    Raises:
        InputError: the file is missing, or it is not JSON.
    """
    with open_json(path) as text:
        content = json.loads(text)
        if re.search(rb"\\u[dD][89a-fA-F]", text):  # half a character is no text: it can't be printed or written
            json.dumps(content, ensure_ascii=False).encode()
        return content


@contextlib.contextmanager
def open_json(path: str | Path) -> Iterator[bytes]:
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
def with_filename(path: str | Path) -> Iterator[None]:
    """Give an `OSError` that names no file, as that of a full disk does, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
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
        with with_filename(path):
            yield Path(name)
        apply_umask(name)  # mkstemp makes 0600
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def apply_umask(file: str | Path) -> None:
    """Give a file the rights that a new one gets: libraries make some that nobody else can read."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)


def check_writable(path: str | Path, folder: bool = False) -> None:
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
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def fingerprint(parts: Iterable[str]) -> str:
    """A short name of texts in their order: other texts have another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]
