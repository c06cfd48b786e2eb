"""Copy a bundle, zip or folder, to a temporary folder; a zip is checked before it is extracted."""

import contextlib
import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath

from homework.utils.errors import InputError

PACKAGE = "homework"
MAX_ZIP_BYTES = 50_000_000  # as in bundle.py, which runs without this package
MAX_UNPACKED_BYTES = 250_000_000  # weights hardly shrink in a zip, so five times its size is plenty
MAX_ENTRIES = 2000
MAX_COMPRESSION_RATIO = 100  # for files above MIN_RATIO_BYTES; text reaches 10, zeros reach 1000
MIN_RATIO_BYTES = 1_000_000
MAX_NAME_BYTES = 255  # per path component, the limit of most file systems
CHUNK_BYTES = 1 << 20
REMEDY = "make it with `python3 bundle.py homework ID`"
NO_INIT = "not a package: it has no __init__.py"


@contextlib.contextmanager
def unpack_bundle(bundle: str | Path) -> Iterator[Path]:
    """Yield a temporary folder with the `homework/` of a zip or of a package's folder.

    Raises:
        InputError: the bundle is refused.
    """
    bundle = Path(bundle)
    with tempfile.TemporaryDirectory(prefix="grader-", ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        if bundle.is_dir():
            _copy_folder(bundle, root / PACKAGE)
        else:
            _extract_zip(bundle, root)
        if not (root / PACKAGE / "__init__.py").is_file():
            raise InputError(bundle, NO_INIT, REMEDY)
        yield root


def _copy_folder(folder: Path, target: Path) -> None:
    """Copy a package without its `__pycache__`, following links to files inside it."""
    if not (folder / "__init__.py").is_file():
        raise InputError(folder, NO_INIT, "give the folder of the package")
    size, home = 0, folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(home)):
            raise InputError(path, "a link to a folder or out of the bundle", "replace it by a copy")
        if not (path.is_dir() or path.is_file()):
            raise InputError(path, "not a regular file", "remove it from the package")
        size += path.stat().st_size
    if size > MAX_UNPACKED_BYTES:
        raise InputError(folder, f"more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB", f"grade its zip; {REMEDY}")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)


def _extract_zip(bundle: Path, root: Path) -> None:
    if not bundle.exists():
        raise InputError(bundle, "no such file or folder", REMEDY)
    size = os.path.getsize(bundle)
    if size > MAX_ZIP_BYTES:
        raise InputError(bundle, f"{size / 1e6:.1f} MB, more than {MAX_ZIP_BYTES / 1e6:.0f} MB", REMEDY)
    try:
        with zipfile.ZipFile(bundle) as archive:
            entries = archive.infolist()
            problem = next(chain(find_bad_names(entries), find_clashes(entries), find_bombs(entries)), None)
            if problem:
                raise InputError(bundle, problem, REMEDY)
            _write_entries(bundle, archive, entries, root)
    except InputError:
        raise
    # RuntimeError: encrypted; NotImplementedError: an unknown version; ValueError: undecodable names
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(bundle, f"not a readable zip ({reason})", REMEDY) from None


def _write_entries(bundle: Path, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], root: Path) -> None:
    """Extract the entries, and stop at the size limit whatever sizes they declare."""
    left = MAX_UNPACKED_BYTES
    for entry in entries:
        target = root / entry.filename
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(target, "xb") as copy:
            while chunk := source.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise InputError(bundle, f"unpacks to more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB", REMEDY)
                copy.write(chunk)


def find_bad_names(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield problems of names that lie outside the package or are not usable, and of links and devices."""
    if len(entries) > MAX_ENTRIES:
        yield f"{len(entries):,} entries, more than {MAX_ENTRIES:,}"
    for entry in entries:
        name, path = entry.filename, PurePosixPath(entry.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            yield f"{name!r} leads out of the bundle"
        if not name.isprintable() or any(len(part.encode()) > MAX_NAME_BYTES for part in path.parts):
            yield f"{name[:60]!r} is not a valid file name"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{name!r} is a link or a device"
    top = sorted({entry.filename.partition("/")[0] for entry in entries})
    if top != [PACKAGE]:
        yield f"expected one top-level folder, {PACKAGE}, found {', '.join(top[:3]) or 'nothing'}"


def find_clashes(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield names that collide on case-insensitive or Unicode-normalising file systems."""
    seen = {}  # normalised path -> (path as first written, whether it is a file)
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        normalized = tuple(unicodedata.normalize("NFKC", part).casefold() for part in parts)
        for end in range(1, len(parts) + 1):
            key, is_file = normalized[:end], end == len(parts) and not entry.is_dir()
            if key not in seen:
                seen[key] = parts[:end], is_file
            elif seen[key][1] != is_file:
                yield f"{'/'.join(parts[:end])!r} is both a file and a folder"
            elif is_file or seen[key][0] != parts[:end]:
                yield f"{entry.filename!r} clashes with another name"


def find_bombs(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield declared sizes that exceed the limits, and compression whose growth zipfile does not bound."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        yield f"unpacks to {total / 1e6:,.0f} MB, more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB"
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{entry.filename!r} is not compressed by deflate"
        if entry.file_size > max(MIN_RATIO_BYTES, MAX_COMPRESSION_RATIO * entry.compress_size):
            ratio = entry.file_size / max(1, entry.compress_size)
            yield f"{entry.filename!r} grows {ratio:,.0f} times, more than {MAX_COMPRESSION_RATIO}"
