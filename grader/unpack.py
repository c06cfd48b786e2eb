"""Copy a bundle, zip or folder, to a temporary folder; a zip is checked before it is extracted."""

import contextlib
import errno
import logging
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from importlib.machinery import PathFinder
from itertools import chain, islice
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO

from homework.utils.errors import InputError

from .zip_directory import (
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_UNPACKED_BYTES,
    find_bad_names,
    find_bombs,
    find_clashes,
    read_entries,
)

PACKAGE = "homework"
RESERVED_FOLDERS = (PACKAGE, "data", "work")  # of an unpacked bundle's root
MAX_ZIP_BYTES = 50_000_000  # as in bundle.py, which runs without this package
MAX_SECONDS = 60  # to unpack; 250 MB take 3
CHUNK_BYTES = 1 << 20
REMEDY = "make it with `python3 bundle.py homework ID`"
NO_INIT = "not a package: it has no __init__.py"

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def unpack_bundle(bundle: str | Path) -> Iterator[Path]:
    """Yield a temporary folder with the package of a zip or folder as `homework/`, whatever its name was.

    Raises:
        InputError: the bundle is refused.
    """
    bundle = Path(bundle)
    root = Path(tempfile.mkdtemp(prefix="grader-")).resolve()
    try:
        copy = _copy_folder if bundle.is_dir() else _extract_zip
        name = copy(bundle, root / PACKAGE)
        if not (root / PACKAGE / "__init__.py").is_file():
            raise InputError(bundle, NO_INIT, REMEDY)
        if name.isidentifier() and name not in RESERVED_FOLDERS and not is_library(name):
            (root / name).symlink_to(PACKAGE)  # it may import itself by its own name
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if root.exists():
            logger.warning("%s: cannot be removed; remove it by hand", root)


def is_library(name: str) -> bool:
    """Return whether a folder of this name would hide a library from the bundle's imports."""
    installed = [sysconfig.get_path(scheme) for scheme in ("purelib", "platlib")]
    return name in sys.stdlib_module_names or PathFinder.find_spec(name, installed) is not None


def open_bundle(path: Path) -> BinaryIO:
    """Open a regular file; a pipe or device is not waited for.

    Raises:
        InputError: the path is something else, or not readable.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise InputError(path, "no such file or folder", REMEDY) from None
    except OSError as error:
        raise InputError(path, f"not readable ({error.strerror})", "check its type and permissions") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InputError(path, "not a regular file", "put a copy of the file in its place")
    return os.fdopen(handle, "rb")


class _Copier:
    """Copy the files of one bundle until a limit of bytes or time is reached."""

    def __init__(self, bundle: Path):
        self.bundle = bundle
        self.bytes_left = MAX_UNPACKED_BYTES
        self.deadline = time.monotonic() + MAX_SECONDS

    def copy(self, source: BinaryIO, target: Path) -> None:
        with open(target, "xb") as copy:
            while chunk := source.read(CHUNK_BYTES):
                self.bytes_left -= len(chunk)
                if self.bytes_left < 0:
                    raise InputError(self.bundle, f"unpacks to more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB", REMEDY)
                if time.monotonic() > self.deadline:
                    raise InputError(self.bundle, f"unpacking takes more than {MAX_SECONDS} s", REMEDY)
                copy.write(chunk)


def find_package(folder: Path) -> Path | None:
    """Return the package that a folder is, or holds and nothing else beside hidden files."""
    if (folder / "__init__.py").is_file():
        return folder
    visible = list(islice((path for path in folder.iterdir() if not path.name.startswith(".")), 2))
    return visible[0] if len(visible) == 1 and (visible[0] / "__init__.py").is_file() else None


def _copy_folder(bundle: Path, target: Path) -> str:
    """Copy a package without its `__pycache__`, following links to files inside it; return its name."""
    folder = find_package(bundle)
    if not folder:
        raise InputError(bundle, NO_INIT, "give the folder of the package")
    copier, home, count, waiting = _Copier(folder), folder.resolve(), 0, [PurePath()]
    while waiting:
        relative = waiting.pop()
        (target / relative).mkdir()
        for entry in os.scandir(folder / relative):
            path, count = Path(entry.path), count + 1
            if count > MAX_ENTRIES or len(relative.parts) > MAX_DEPTH:
                problem = f"more than {MAX_ENTRIES:,} files, or deeper than {MAX_DEPTH} folders"
                raise InputError(folder, problem, f"grade its zip; {REMEDY}")
            if entry.is_symlink() and (entry.is_dir() or not path.resolve().is_relative_to(home)):
                raise InputError(path, "a link to a folder or out of the bundle", "replace it by a copy")
            if not entry.is_dir():
                with open_bundle(path) as source:
                    copier.copy(source, target / relative / entry.name)
            elif entry.name != "__pycache__":
                waiting.append(relative / entry.name)
    return home.name


def _extract_zip(bundle: Path, target: Path) -> str:
    """Extract the one top-level folder of a zip as `target`; return its name."""
    with open_bundle(bundle) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_ZIP_BYTES:
            raise InputError(bundle, f"{size / 1e6:.1f} MB, more than {MAX_ZIP_BYTES / 1e6:.0f} MB", REMEDY)
        try:
            entries = read_entries(file)
            _refuse(bundle, find_bad_names(entries))
            name = _find_top_folder(bundle, entries)
            _refuse(bundle, chain(find_clashes(entries), find_bombs(entries)))
            with zipfile.ZipFile(file) as archive:
                _write_entries(archive, _Copier(bundle), target)
        # RuntimeError: encrypted; NotImplementedError: an unknown version; ValueError: undecodable names;
        # OSError: an impossible offset, or a full disk
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, OSError) as error:
            if isinstance(error, InputError) or isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(bundle, f"not a readable zip ({reason})", REMEDY) from None
    return name


def _refuse(bundle: Path, problems: Iterator[str]) -> None:
    """Raise an error for the first problem; the checks after it may take too long."""
    if problem := next(problems, None):
        raise InputError(bundle, problem, REMEDY)


def _find_top_folder(bundle: Path, entries: Sequence[zipfile.ZipInfo]) -> str:
    paths = {PurePosixPath(entry.filename): entry.is_dir() for entry in entries}
    top = sorted({path.parts[0] for path in paths})
    if len(top) == 1 and paths.get(PurePosixPath(top[0]), True):
        return top[0]
    packages = [name for name in top if PurePosixPath(name, "__init__.py") in paths]
    others = [name for name in top if name not in packages]
    remedy = f"remove {', '.join(others[:3])} from it, or {REMEDY}" if len(packages) == 1 and others else REMEDY
    raise InputError(bundle, f"expected one top-level folder, found {', '.join(top[:3]) or 'nothing'}", remedy)


def _write_entries(archive: zipfile.ZipFile, copier: _Copier, target: Path) -> None:
    """Extract the entries, and stop at the limits whatever sizes they declare."""
    for entry in archive.infolist():
        path = target.joinpath(*PurePosixPath(entry.filename).parts[1:])
        (path if entry.is_dir() else path.parent).mkdir(parents=True, exist_ok=True)
        if not entry.is_dir():
            with archive.open(entry) as source:
                copier.copy(source, path)
