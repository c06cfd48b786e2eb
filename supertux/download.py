"""The course's data set: its zip from the net, resumable, or from a file; unpacked into `data/` and nowhere else."""

import logging
import os
import shutil
import stat
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated

import requests
import tyro

from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write, with_filename
from homework.utils.progress import progress_bar

from . import BROKEN_ZIP
from .sample import remove_sample

logger = logging.getLogger(__name__)

URL = "https://utexas.box.com/shared/static/qubjm5isldqvyimfj9rsmbnvnbezwcv4.zip"
TIMEOUT = (20, 60)  # seconds to connect, and between two pieces
PIECE = 1 << 16  # bytes; when a transfer breaks off, less than one is lost
BLOCK = 4096  # bytes a file system rounds a file up to


def download(*, from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None, data: Path = DATA_DIR) -> None:
    """Get the course's data set and unpack it. Run again, it goes on where it stopped.

    Args:
        from_: a zip that is already here, instead of the course's from the net
        data: where the splits go
    """
    file = from_ or fetch(URL, data / "data.zip")
    remove_sample(data)
    counts = unpack(file, data)
    left_out = f", {counts['left out']:,} left out (not a file of data/)" if counts["left out"] else ""
    logger.info(f"{data}: {counts['new']:,} files unpacked, {counts['present']:,} were there already{left_out}")
    logger.info("\n".join(summary(data)))
    if from_ is None:
        logger.info(
            f"{file} can mend missing files when you run this again; delete it to save {file.stat().st_size:,} bytes"
        )


def fetch(url: str, target: Path) -> Path:
    """Download `url` to `target`, by way of a `.part` file that the next call goes on with.

    Raises:
        InputError: the server can't be reached, refuses, breaks off or sends no zip; or the disk is too small.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        total = _receive(url, part)
    except requests.RequestException as error:
        have = part.stat().st_size if part.exists() else 0
        problem = f"the transfer of {url} failed after {have:,} bytes ({_reason(error)})"
        raise InputError(part, problem, "run again to resume, or give a zip with --from FILE") from None
    size = part.stat().st_size
    if total is not None and size != total:
        raise InputError(part, f"{size:,} of {total:,} bytes have arrived", "run again to resume")
    if not zipfile.is_zipfile(part):
        part.unlink()
        raise InputError(url, "what it sent is not a zip", "get the zip with a browser and give it with --from FILE")
    part.replace(target)
    return target


def _receive(url: str, part: Path) -> int | None:
    """Append what is missing of `url` to `part`.

    Returns:
        The size of the whole file; None where the server doesn't tell.
    """
    have = part.stat().st_size if part.exists() else 0
    # unpacked by the transport, the sizes of pieces would not be those of the file
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        first, total = _content_range(response.headers.get("Content-Range", ""))
        if response.status_code == 416 and total == have:
            return total  # the last run got everything but the end of this function
        if response.status_code == 416:
            part.unlink()
            raise InputError(part, "longer than the file on the server", "run again to start over")
        response.raise_for_status()
        resumed = response.status_code == 206 and first == have
        if response.status_code == 206 and not resumed:
            raise InputError(url, f"asked for bytes from {have}, it sent others", f"delete {part} and run again")
        if not resumed:  # the server sends the whole file
            have = 0
            length = response.headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        _require_space(part.parent, (total or have) - have)
        with (
            with_filename(part),
            open(part, "ab" if resumed else "wb") as stream,
            progress_bar(desc="download", total=total, initial=have, unit="B", unit_scale=True) as progress,
        ):
            for piece in response.iter_content(PIECE):
                stream.write(piece)
                progress.update(len(piece))
    return total


def _content_range(header: str) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file) of `bytes 5-9/10` or `bytes */10`."""
    span, _, total = header.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    return int(first) if first.isdigit() else None, int(total) if total.isdigit() else None


def _reason(error: requests.RequestException) -> str:
    status = getattr(error.response, "status_code", None)
    return f"HTTP {status}" if status else type(error).__name__


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        problem = f"{size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise InputError(folder, problem, "free some space or name another folder with --data")


def unpack(file: Path, data: Path) -> Counter:
    """Unpack what belongs under `data/` of a zip into the folder `data`, each file whole or not at all.

    Files that are there in the right size stay as they are. Left out are names that lead elsewhere, links,
    and whatever the zip holds beside `data/`.

    Returns:
        How many files are `new`, `present` and `left out`.

    Raises:
        InputError: no such file, no zip, a broken one, one without data, or too little space.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members, left_out = _members(archive, data)
            if not members:
                raise InputError(file, "nothing in it belongs under data/", "take the course's zip")
            missing = {path: member for path, member in members.items() if not _is_there(path, member)}
            data.mkdir(parents=True, exist_ok=True)
            _require_space(data, sum(-(-member.file_size // BLOCK) * BLOCK for member in missing.values()))
            for folder in {path.parent for path in missing}:
                _require_inside(folder, data)
            for path, member in progress_bar(missing.items(), desc="unpack", unit="file", delay=1):
                with archive.open(member) as source, atomic_write(path) as temporary, open(temporary, "wb") as stream:
                    shutil.copyfileobj(source, stream)
    except FileNotFoundError as error:
        if error.filename != os.fspath(file):
            raise
        raise InputError(file, "no such file", "check the path after --from") from None
    except InputError:  # a ValueError too
        raise
    except BROKEN_ZIP as error:
        raise InputError(file, f"a broken zip ({first_line(error)})", "delete it and get it again") from None
    return Counter({"new": len(missing), "present": len(members) - len(missing), "left out": left_out})


def _members(archive: zipfile.ZipFile, data: Path) -> tuple[dict[Path, zipfile.ZipInfo], int]:
    """(path -> member of those that belong under `data`, the number of other files)."""
    members, left_out = {}, 0
    for member in archive.infolist():
        if member.is_dir():
            continue
        parts = PurePosixPath(member.filename).parts
        # ":" and "\" would be a drive and a separator on Windows
        unsafe = ".." in parts or any(char in member.filename for char in ":\\")
        is_file = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        if unsafe or not is_file or len(parts) < 2 or parts[0] != "data":
            left_out += 1
        else:
            members[data.joinpath(*parts[1:])] = member
    return members, left_out


def _is_there(path: Path, member: zipfile.ZipInfo) -> bool:
    try:
        return path.stat().st_size == member.file_size
    except FileNotFoundError:
        return False


def _require_inside(folder: Path, data: Path) -> None:
    """A split that is a link would carry the files out of `data`."""
    if not folder.resolve().is_relative_to(data.resolve()):
        raise InputError(folder, "a link that leads out of the data folder", "remove the link or name another --data")


def summary(data: Path) -> list[str]:
    """A line for each split: its frames, views and pair files."""
    lines = []
    for split in sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith(".")):
        names = os.listdir(split)
        frames, views, pairs = (
            sum(name.endswith(ends) for name in names)
            for ends in ("_info.json", "_im.jpg", ("_qa_pairs.json", "_captions.json", "_mc_qas.json"))
        )
        lines.append(f"{split.name}: {frames:,} frames, {views:,} views, {pairs} pair files")
    return lines
