"""Download the course's data set, or take its zips from disk, and unpack them into `data/` only."""

import contextlib
import logging
import shutil
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

import requests
import tyro

from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError, file_not_found, first_line, resumable
from homework.utils.io import atomic_write, with_filename
from homework.utils.progress import progress_bar

from .sample import MARKER, SPLITS, UNPACKING, unchanged_sample_files

logger = logging.getLogger(__name__)

URL = "https://utexas.box.com/shared/static/qubjm5isldqvyimfj9rsmbnvnbezwcv4.zip"
TIMEOUTS_S = (20, 60)  # to connect, and between two chunks
CHUNK_BYTES = 1 << 16  # an interrupted transfer loses less than one chunk
BLOCK_BYTES = 4096  # file systems round file sizes up to this
# What reading a broken zip raises; the last three for unknown methods, passwords, and bad names.
BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
ANNOTATIONS = ("_qa_pairs.json", "_captions.json", "_mc_qas.json")


@resumable()
def download(*, from_: Annotated[tuple[Path, ...], tyro.conf.arg(name="from")] = (), data: Path = DATA_DIR) -> None:
    """Get the course's data set and unpack it. If interrupted, the same command resumes.

    Args:
        from_: zips that are already on disk, instead of downloading the course's
        data: the folder of the splits
    """
    files = from_ or (fetch(URL, data / "data.zip"),)
    counts = unpack(files, data)
    skipped = f", {counts['skipped']:,} skipped (hidden, or not below data/)" if counts["skipped"] else ""
    logger.info(f"{data}: {counts['new']:,} files unpacked, {counts['present']:,} already present{skipped}")
    log_splits(data)
    if not from_:
        logger.info(f"{files[0]}: delete it to free {_size(files[0]):,} bytes, or keep it to restore missing files")


def fetch(url: str, target: Path) -> Path:
    """Download `url` to `target` through a `.part` file, which the next call resumes."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        _receive(url, part)
    except requests.RequestException as error:
        reason = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
        if _size(part) <= 0:
            remedy = "check the network and run again, or give a zip with --from FILE"
            raise InputError(url, f"nothing could be downloaded ({reason})", remedy) from None
        problem = f"the transfer of {url} failed after {_size(part):,} bytes ({reason})"
        raise InputError(part, problem, "run again to resume, or give a zip with --from FILE") from None
    if not zipfile.is_zipfile(part):
        part.unlink()
        raise InputError(url, "the response is not a zip", "get the zip with a browser and give it with --from FILE")
    part.replace(target)
    return target


def _receive(url: str, part: Path) -> None:
    """Append the missing bytes of `url` to `part`. Raises RequestException if some of them do not come."""
    received = max(_size(part), 0)
    # identity: with a compressed transfer, sizes of chunks would not be those of the file
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={received}-"} if received else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
        content_range = response.headers.get("Content-Range", "")  # bytes FIRST-LAST/TOTAL
        length = content_range.rpartition("/")[2]
        if response.status_code == 416:
            if length == str(received):
                return  # complete, but interrupted before it was renamed
            part.unlink()
            raise InputError(part, "longer than the file on the server", "run again to start over")
        response.raise_for_status()
        if response.status_code != 206:  # the server sends the whole file
            received, length = 0, response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        _check_free_space(part.parent, (total or received) - received)
        with (
            with_filename(part),
            open(part, "ab" if received else "wb") as stream,
            progress_bar(desc="download", total=total, initial=received, unit="B", unit_scale=True) as progress,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                stream.write(chunk)
                progress.update(len(chunk))


def _size(path: Path) -> int:
    """Return the size of a file in bytes, -1 if it is missing."""
    return path.stat().st_size if path.exists() else -1


def _check_free_space(folder: Path, size: int) -> None:
    if size > (free := shutil.disk_usage(folder).free):
        problem = f"{size / 1e6:,.0f} MB needed, {free / 1e6:,.0f} MB free"
        raise InputError(folder, problem, "free some space or choose another folder with --data")


def unpack(files: tuple[Path, ...], data: Path) -> Counter:
    """Unpack the zips' files below `data/` and return how many are `new`, `present` and `skipped`.

    All are unpacked into a folder inside `data` before any is moved to its place. Files that exist with the right size
    are kept, unless they are the sample's. Hidden files, links and names outside of `data/` are skipped.
    """
    members, num_skipped = {}, 0
    for file in files:
        with _open_zip(file) as archive:
            found, others = _find_members(archive)
        if not found:
            raise InputError(file, "nothing in it belongs under data/", "choose the course's zip")
        members |= {name: (file, member) for name, member in found.items()}
        num_skipped += others
    sample = unchanged_sample_files(data)
    new = {n: m for n, m in members.items() if n in sample or _size(data / n) != m[1].file_size}
    todo = {n: m for n, m in new.items() if _size(data / UNPACKING / n) != m[1].file_size}
    _check_places(new, data)
    data.mkdir(parents=True, exist_ok=True)
    _check_free_space(data, sum(-(-member.file_size // BLOCK_BYTES) * BLOCK_BYTES for _, member in todo.values()))
    with progress_bar(total=len(todo), desc="unpack", unit="file", delay=1) as progress:
        for file in files:
            with _open_zip(file) as archive:
                for name in [name for name in todo if todo[name][0] == file]:
                    with atomic_write(data / UNPACKING / name) as temporary:
                        temporary.write_bytes(archive.read(todo[name][1]))
                    progress.update()
    _swap(sample, new, {data / name for name in members}, data)
    return Counter({"new": len(new), "present": len(members) - len(new), "skipped": num_skipped})


def _check_places(names: Iterable[str], data: Path) -> None:
    """Check before any change that files of these names can be put into the data folder."""
    remedy = "move it away or choose another --data"
    for folder in {(data / name).parent for name in names}:
        if blocker := next((path for path in (folder, *folder.parents) if path.is_file()), None):
            raise InputError(blocker, "is a file, expected a folder", remedy)
        if not folder.resolve().is_relative_to(data.resolve()):
            raise InputError(folder, "a link that leads out of the data folder", remedy)
    if blocker := next((data / name for name in names if (data / name).is_dir()), None):
        raise InputError(blocker, "is a folder, expected a file", remedy)


def _swap(sample: set[str], new: Iterable[str], members: set[Path], data: Path) -> None:
    """Remove the sample's files and move the new ones to their places; if interrupted, `unpack` resumes."""
    for name in sample:
        (data / name).unlink()
    if (data / MARKER).exists():  # annotations of the sample's frames are wrong for other frames of the same names
        for path in {path for split in SPLITS for path in (data / split).glob("*.json")} - members:
            if path.name.endswith(ANNOTATIONS):
                path.replace(f"{path}.sample")
                logger.info(f"{path} annotates the sample's frames: renamed to {path.name}.sample")
    for name in new:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / UNPACKING / name).replace(data / name)
    (data / MARKER).unlink(missing_ok=True)
    shutil.rmtree(data / UNPACKING, ignore_errors=True)


@contextlib.contextmanager
def _open_zip(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for the block; raise InputError if it is missing or broken."""
    if not file.is_file():
        raise file_not_found(file, otherwise="check the path after --from")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except InputError:  # also a ValueError
        raise
    except BROKEN_ZIP as error:
        raise InputError(file, f"a broken zip ({first_line(error)})", "delete it and get it again") from None


def _find_members(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], int]:
    """Return (name below `data/` -> member, number of other files) of a zip."""
    files = [member for member in archive.infolist() if not member.is_dir()]
    members = {}
    for member in files:
        first, *parts = PurePosixPath(member.filename).parts
        # ":" and "\\" are a drive and a separator on Windows; ".." begins with a dot, as hidden files do
        is_safe = not set(":\\") & set(member.filename) and not any(part[0] == "." for part in parts)
        is_file = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        if is_safe and is_file and first == "data" and parts:
            members["/".join(parts)] = member
    return members, len(files) - len(members)


def log_splits(data: Path) -> None:
    """Log how many frames, views and annotation files each split has."""
    for split in sorted(path for path in data.glob("[!.]*") if path.is_dir()):
        names = [path.name for path in split.glob("[!.]*")]
        suffixes = {"frames": "_info.json", "views": "_im.jpg", "annotation files": ANNOTATIONS}
        counts = (f"{sum(name.endswith(ends) for name in names):,} {what}" for what, ends in suffixes.items())
        logger.info(f"{split.name}: {', '.join(counts)}")
