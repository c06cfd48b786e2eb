"""Pack the submission: `python3 bundle.py homework ID` writes ID.zip.

Needs nothing but this file and Python's standard library, so it packs any package, outside of the virtual
environment too: `atomic_write` stands here again because the `homework` that it packs may import torch, or fail to.
"""

import argparse
import contextlib
import difflib
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = "homework"  # the bundle's one top-level folder
MAX_BYTES = 50_000_000  # the course says 50 MB; of its two readings this is the stricter
SHOWN = 3  # how many of the largest files to name
CHUNK = 1 << 20

# What training and running leave behind, and no grader needs. Hidden files and folders go too.
DROPPED_FOLDERS = ("__pycache__", "checkpoint-*", "global_step*", "runs", "logs", "wandb", "cache", "*.egg-info")
DROPPED_FILES = (
    *("optimizer*.pt", "optimizer*.bin", "scheduler*.pt", "scaler*.pt", "rng_state*.pth"),
    *("trainer_state.json", "training_args.bin", "events.out.tfevents.*", "views-*.npy"),
    *("*.pyc", "*.pyo", "*.log", "*.tmp", "*.part", "*.swp", "*~"),
)


class BundleError(Exception):
    """One line: what is wrong and what to do."""


def is_dropped(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's or folder's bare name is hidden or fits one of `patterns`."""
    return name.startswith(".") or any(fnmatch(name, pattern) for pattern in patterns)


def files_of(folder: Path) -> list[Path]:
    """The files to pack, relative to `folder`, sorted.

    Raises:
        BundleError: a folder in it is a link. Following it could leave the package or never end.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        place = Path(place)
        folders[:] = [name for name in folders if not is_dropped(name, DROPPED_FOLDERS)]
        for name in folders:
            if (place / name).is_symlink():
                raise BundleError(f"{place / name}: a link to a folder; put a copy of the folder in its place")
        found += [(place / name).relative_to(folder) for name in files if not is_dropped(name, DROPPED_FILES)]
    return sorted(found, key=Path.as_posix)


def _raise(error: OSError) -> None:
    raise error  # os.walk skips unreadable folders unless told otherwise


def largest(folder: Path, files: list[Path], count: int = SHOWN) -> list[tuple[int, Path]]:
    """(bytes on disk, file) of the largest files, largest first."""
    sizes = [((folder / file).stat().st_size, file) for file in files]
    return sorted(sizes, key=lambda item: (-item[0], item[1].as_posix()))[:count]


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` only if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes 0600; give the file the usual rights
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk's
            error.filename = str(path)
        raise


def write_zip(folder: Path, files: list[Path], target: Path, told: Callable[[int], None] = lambda size: None) -> None:
    """The files as a zip: the same files give the same bytes, whenever and by whomever they were written.

    Args:
        told: is called with each file's bytes once they are packed.

    Raises:
        BundleError: the zip would be larger than `MAX_BYTES`; nothing is written then.
    """
    with atomic_write(target) as temporary:
        with zipfile.ZipFile(temporary, "w") as archive:
            for file in files:
                _add(archive, folder / file, f"{PACKAGE}/{file.as_posix()}")
                if archive.fp.tell() > MAX_BYTES:
                    raise BundleError(_too_large(folder, files))
                told((folder / file).stat().st_size)
        if temporary.stat().st_size > MAX_BYTES:  # the list of contents at the end counts too
            raise BundleError(_too_large(folder, files))


def _add(archive: zipfile.ZipFile, file: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, also where it is packed on Windows
    info.external_attr = 0o100644 << 16
    info.file_size = file.stat().st_size  # so that a file over 2 GB gets the wide header it needs
    with open(file, "rb") as source, archive.open(info, "w") as packed:
        while chunk := source.read(CHUNK):
            packed.write(chunk)
            if archive.fp.tell() > MAX_BYTES:
                return  # the caller refuses; no need to compress the rest


def _too_large(folder: Path, files: list[Path]) -> str:
    names = ", ".join(f"{file.as_posix()} ({size / 1e6:.1f} MB)" for size, file in largest(folder, files))
    return f"{folder}: the bundle exceeds {MAX_BYTES / 1e6:.0f} MB; make it smaller, the largest files are {names}"


@contextlib.contextmanager
def _bar(folder: Path, files: list[Path], shown: bool) -> Iterator[Callable[[int], None]]:
    """What a bar is told of each packed file: on a terminal, and where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda size: None
        return
    total = sum((folder / file).stat().st_size for file in files)
    settings = {"unit": "B", "unit_scale": True, "delay": 1, "disable": None if shown else True}
    with tqdm(total=total, desc="packing", **settings) as progress:
        yield progress.update


def bundle(folder: Path, target: Path, shown: bool = False) -> list[Path]:
    """Pack `folder` into `target`.

    Args:
        shown: show a bar.

    Returns:
        the packed files, relative to `folder`.

    Raises:
        BundleError: no such folder, no package, or too large.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; name the folder of the package, `{PACKAGE}`")
    if not (folder / "__init__.py").is_file():
        raise BundleError(f"{folder}: no __init__.py in it, so no package; name the folder of the package")
    files = [file for file in files_of(folder) if (folder / file).resolve() != target.resolve()]
    with _bar(folder, files, shown) as told:
        write_zip(folder, files, target, told)
    return files


def _id(text: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, `_`, `-` and `.` only")
    return text.removesuffix(".zip")


class _Parser(argparse.ArgumentParser):
    """One that names the right flag next to a wrong one."""

    def error(self, message: str) -> None:
        """Usage and one line on stderr, exit status 2."""
        wrong = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        nearest = difflib.get_close_matches(wrong[1], self._option_string_actions, 1) if wrong else []
        super().error(f"{message}. Did you mean {nearest[0]}?" if nearest else message)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(
        "bundle.py",
        description="Pack the submission into ID.zip.",
        epilog=f"Example: python3 bundle.py {PACKAGE} ID",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=120),
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help=f"folder of the package: {PACKAGE}")
    parser.add_argument("id", metavar="ID", type=_id, help="your id; the bundle is ID.zip")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(), help="where to write it [default: .]")
    parser.add_argument("--quiet", action="store_true", help="no bar and no list of files [default: off]")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    options = parse()
    target = options.output / f"{options.id}.zip"
    try:
        files = bundle(options.folder, target, shown=not options.quiet)
    except BundleError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}; check the path, its permissions and the free space")
    except KeyboardInterrupt:
        print(f"interrupted: {target} is as it was; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
    if options.quiet:
        return
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, {len(files)} files; the largest are")
    for size, file in largest(options.folder, files):
        print(f"{size / 1e6:8.1f} MB  {file.as_posix()}")


if __name__ == "__main__":
    main()
