"""A bundle, zip or folder -> a place of its own, with the data linked beside the package."""

import contextlib
import lzma
import os
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from homework.errors import InputError

PACKAGE = "homework"
MAX_BYTES = 50_000_000  # as in bundle.py, which runs without this package
REMEDY = "make it with `python3 bundle.py homework ID`"


@contextlib.contextmanager
def unpacked(bundle: str | Path, data_dir: str | Path) -> Iterator[Path]:
    """A temporary folder that holds `homework/` and a link `data`. It is gone after the block.

    Args:
        bundle: a zip, or the folder of the package itself.
        data_dir: what `Path(__file__).parent.parent / "data"` is to find from inside the package.

    Raises:
        InputError: the bundle is refused.
    """
    bundle = Path(bundle)
    with tempfile.TemporaryDirectory(prefix="grader-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        if bundle.is_dir():
            (root / PACKAGE).symlink_to(bundle.resolve(), target_is_directory=True)
        else:
            _extract(bundle, root)
        if not (root / PACKAGE / "__init__.py").is_file():
            raise InputError(bundle, "no package: it has no __init__.py", REMEDY)
        (root / "data").symlink_to(Path(data_dir).resolve(), target_is_directory=True)
        yield root


def _extract(bundle: Path, root: Path) -> None:
    if not bundle.exists():
        raise InputError(bundle, "no such file or folder", REMEDY)
    size = os.path.getsize(bundle)
    if size > MAX_BYTES:
        raise InputError(bundle, f"{size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB", REMEDY)
    try:
        with zipfile.ZipFile(bundle) as archive:
            check_names(bundle, archive.infolist())
            archive.extractall(root)
    except InputError:
        raise
    # RuntimeError: encrypted, or of an unknown compression; ValueError: names that are no text
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(bundle, f"not a readable zip ({reason})", REMEDY) from None


def check_names(bundle: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse a zip that would write outside of its place or holds more than the package.

    Raises:
        InputError: an absolute or climbing path, a link, a device, or another top-level name.
    """
    for entry in entries:
        path, kind = PurePosixPath(entry.filename), stat.S_IFMT(entry.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
            raise InputError(bundle, f"{entry.filename!r} leads out of the bundle", REMEDY)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(bundle, f"{entry.filename!r} is a link or a device", REMEDY)
    top = sorted({entry.filename.partition("/")[0] for entry in entries})
    if top != [PACKAGE]:
        names = ", ".join(top[:3]) or "nothing"
        raise InputError(bundle, f"expected one top-level folder, {PACKAGE}, found {names}", REMEDY)
