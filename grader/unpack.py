"""A bundle, zip or folder -> a place of its own. Nothing is unpacked before all of it is checked."""

import contextlib
import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from homework.utils.errors import InputError

PACKAGE = "homework"
MAX_BYTES = 50_000_000  # of the zip; as in bundle.py, which runs without this package
MAX_UNPACKED = 250_000_000  # bytes; weights hardly shrink in a zip, so five times its size is plenty
MAX_ENTRIES = 2000
MAX_RATIO = 100  # unpacked to packed, of a file that is large unpacked: text has 10, and zeros have 1000
LARGE = 1_000_000  # bytes
MAX_NAME = 255  # bytes of one part of a path, which is what file systems take
CHUNK = 1 << 20
REMEDY = "make it with `python3 bundle.py homework ID`"


@contextlib.contextmanager
def unpacked(bundle: str | Path) -> Iterator[Path]:
    """A temporary folder that holds `homework/`. It is gone after the block.

    Args:
        bundle: a zip, or the folder of the package itself, of which it gets a copy.

    Raises:
        InputError: the bundle is refused.
    """
    bundle = Path(bundle)
    with tempfile.TemporaryDirectory(prefix="grader-", ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        if bundle.is_dir():
            _copy(bundle, root / PACKAGE)
        else:
            _extract(bundle, root)
        if not (root / PACKAGE / "__init__.py").is_file():
            raise InputError(bundle, "no package: it has no __init__.py", REMEDY)
        yield root


def _copy(folder: Path, target: Path) -> None:
    """The package's files, links inside of it followed. What Python left behind stays."""
    if not (folder / "__init__.py").is_file():
        raise InputError(folder, "no package: it has no __init__.py", "name the folder of the package")
    size, home = 0, folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in [*folders, *names]:
            path = Path(place, name)
            if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(home)):
                raise InputError(path, "a link to a folder or out of the bundle", "put a copy in its place")
        for name in names:
            path = Path(place, name)
            if not path.is_file():
                raise InputError(path, "no plain file", "take it out of the package")
            size += path.stat().st_size
            if size > MAX_UNPACKED:
                raise InputError(folder, f"more than {MAX_UNPACKED / 1e6:.0f} MB", f"grade its zip; {REMEDY}")
            copy = target / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def _extract(bundle: Path, root: Path) -> None:
    if not bundle.exists():
        raise InputError(bundle, "no such file or folder", REMEDY)
    size = os.path.getsize(bundle)
    if size > MAX_BYTES:
        raise InputError(bundle, f"{size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB", REMEDY)
    try:
        with zipfile.ZipFile(bundle) as archive:
            entries = archive.infolist()
            check_names(bundle, entries)
            check_clashes(bundle, entries)
            check_sizes(bundle, entries)
            _write(bundle, archive, entries, root)
    except InputError:
        raise
    # RuntimeError: encrypted; NotImplementedError: an unknown version; ValueError: names that are no text
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(bundle, f"not a readable zip ({reason})", REMEDY) from None


def _write(bundle: Path, archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], root: Path) -> None:
    """Unpack, and stop where more bytes come than were declared."""
    left = MAX_UNPACKED
    for entry in entries:
        target = root / entry.filename
        if entry.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, open(target, "xb") as copy:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise InputError(bundle, f"unpacks to more than {MAX_UNPACKED / 1e6:.0f} MB", REMEDY)
                copy.write(chunk)


def check_names(bundle: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a zip that would write outside of its place or holds more than the package.

    Raises:
        InputError: an absolute or climbing path, an unusable name, a link, a device, or another top-level name.
    """
    if len(entries) > MAX_ENTRIES:
        raise InputError(bundle, f"{len(entries):,} entries, more than {MAX_ENTRIES:,}", REMEDY)
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise InputError(bundle, f"{name!r} leads out of the bundle", REMEDY)
        if not name.isprintable() or any(len(part.encode()) > MAX_NAME for part in path.parts):
            raise InputError(bundle, f"{name[:60]!r} is no name for a file", REMEDY)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(bundle, f"{name!r} is a link or a device", REMEDY)
    top = sorted({entry.filename.partition("/")[0] for entry in entries})
    if top != [PACKAGE]:
        names = ", ".join(top[:3]) or "nothing"
        raise InputError(bundle, f"expected one top-level folder, {PACKAGE}, found {names}", REMEDY)


def check_clashes(bundle: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse names that are one file on some system: which of them a reader sees should be no matter of luck.

    Raises:
        InputError: the same name twice, whatever its case and however its letters are composed; a file that is a
            folder too.
    """
    files, folders = {}, {}
    for entry in entries:
        parts = [unicodedata.normalize("NFKC", part).casefold() for part in PurePosixPath(entry.filename).parts]
        original = PurePosixPath(entry.filename).parts
        for end in range(1, len(parts) + (1 if entry.is_dir() else 0)):
            if folders.setdefault(tuple(parts[:end]), original[:end]) != original[:end]:
                raise InputError(bundle, f"{entry.filename!r} clashes with another name", REMEDY)
        if not entry.is_dir():
            if tuple(parts) in files:
                raise InputError(bundle, f"{entry.filename!r} clashes with another name", REMEDY)
            files[tuple(parts)] = entry.filename
    both = sorted(files[key] for key in files.keys() & folders.keys())
    if both:
        raise InputError(bundle, f"{both[0]!r} clashes with another name: it is a folder too", REMEDY)


def check_sizes(bundle: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse a zip that grows out of all proportion, by the sizes that it declares.

    Raises:
        InputError: too much in all, or of one file; or packed in a way whose growth zipfile doesn't bound.
    """
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED:
        raise InputError(bundle, f"unpacks to {total / 1e6:,.0f} MB, more than {MAX_UNPACKED / 1e6:.0f} MB", REMEDY)
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(bundle, f"{entry.filename!r} is packed by another method than deflate", REMEDY)
        if entry.file_size > max(LARGE, MAX_RATIO * entry.compress_size):
            times = entry.file_size / max(1, entry.compress_size)
            raise InputError(bundle, f"{entry.filename!r} grows {times:,.0f} times, more than {MAX_RATIO}", REMEDY)
