"""Read JSON, and write files atomically."""

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import InputError, file_not_found, first_line


def read_json(path: str | Path):
    """Read and parse a JSON file; raises what `open_json` does."""
    with open_json(path) as text:
        content = json.loads(text)
        if re.search(rb"\\u[dD][89a-fA-F]", text):  # a lone surrogate can be neither printed nor written
            json.dumps(content, ensure_ascii=False).encode()
        return content


@contextlib.contextmanager
def open_json(path: str | Path) -> Iterator[bytes]:
    """Read a JSON file for a block that parses it.

    Raises:
        InputError: the file is missing, or the block fails to parse it.
    """
    try:
        yield Path(path).read_bytes()
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise file_not_found(path) from None
    except (ValueError, RecursionError) as error:
        problem = f"not readable as JSON ({first_line(error)})"
        raise InputError(path, problem, "restore or delete the file") from None


@contextlib.contextmanager
def with_filename(path: str | Path) -> Iterator[None]:
    """Add `path` to an `OSError` without a file name, as a full disk raises it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, and rename it to `path` if the block succeeds.

    An interrupted write leaves the old file or none, never a part of the new one.
    """
    path = Path(path)
    _check_not_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        error.filename = str(path)  # instead of the temporary file's
        raise
    os.close(handle)
    try:
        with with_filename(path):
            yield Path(name)
        apply_umask(name)  # mkstemp creates files with mode 0600
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a path for a new folder beside `path`, and swap the two if the block succeeds.

    A full disk or Ctrl-C leaves the old folder whole, or none.

    Args:
        keep: where to put the old folder, in place of an older one; by default it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        new, old, older = Path(temporary) / "new", keep or Path(temporary) / "old", Path(temporary) / "older"
        with with_filename(path):
            yield new
            for file in new.rglob("*"):
                if file.is_file():
                    apply_umask(file)
        is_replaced = path.exists()
        try:
            if is_replaced and old.exists():
                old.rename(older)
            if is_replaced:
                path.rename(old)
            new.rename(path)
        except BaseException:  # Ctrl-C too: the temporary folder is removed with all that is still in it
            if is_replaced and not path.exists():
                old.rename(path)
            if older.exists() and not old.exists():
                older.rename(old)
            raise


def apply_umask(file: str | Path) -> None:
    """Give a file the permissions of a new one; some libraries make it readable by its owner only."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(file, 0o666 & ~umask)


def check_writable(path: str | Path, folder: bool = False, remedy: str = "choose another path") -> None:
    """Check before long work that its result, a file or else a folder, can be written to `path`."""
    if not folder:
        _check_not_folder(Path(path))
    above = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(path, f"cannot write: {above} is not a writable directory", remedy)


def _check_not_folder(path: Path) -> None:
    if path.is_dir():
        raise InputError(path, "is a folder", "choose a file name")


def write_json(path: str | Path, content) -> None:
    """Write `content` as JSON, atomically. The same content gives the same bytes."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def fingerprint(parts: Iterable[str]) -> str:
    """Return 16 hex digits that identify a sequence of strings."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()[:16]
