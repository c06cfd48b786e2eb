"""Find what is wrong with a zip by its list of files, the central directory, before anything is extracted.

Whatever is built from names is linear in their length, and the list's size is bounded before zipfile reads it.
"""

import os
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import BinaryIO

MAX_DIRECTORY_BYTES = 1_000_000  # 500 per entry; zipfile makes an object of every 46
MAX_ENTRIES = 2000
MAX_PATH_CHARS = 1000
MAX_DEPTH = 50  # folders above a file
MAX_NAME_BYTES = 255  # per path component, the limit of most file systems
MAX_UNPACKED_BYTES = 250_000_000  # weights hardly shrink in a zip, so five times its size is plenty
MAX_COMPRESSION_RATIO = 100  # for files above MIN_RATIO_BYTES; text reaches 10, zeros reach 1000
MIN_RATIO_BYTES = 1_000_000
LOCAL_HEADER_BYTES = 30

# APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16
END = struct.Struct("<4s4H2LH")  # ..., size of the central directory, its offset, length of the comment
ZIP64_LOCATOR = struct.Struct("<4sLQL")  # ..., offset of the next, ...
ZIP64_END = struct.Struct("<4sQ2H2L4Q")  # ..., size of the central directory, its offset
END_SIGNATURE, ZIP64_LOCATOR_SIGNATURE, ZIP64_END_SIGNATURE = b"PK\5\6", b"PK\6\7", b"PK\6\6"

# Windows opens devices by these names, whatever their suffix.
PORTS = {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
RESERVED_NAMES = {*PORTS, *("con", "prn", "aux", "nul", "conin$", "conout$")}


def read_entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """Return the entries of a zip.

    Raises:
        zipfile.BadZipFile, ValueError: it is not a readable zip, or its central directory is too large.
    """
    size = read_directory_size(file)
    if size > MAX_DIRECTORY_BYTES:
        limit = f"more than {MAX_DIRECTORY_BYTES / 1e6:.0f} MB"
        raise zipfile.BadZipFile(f"a list of files of {size / 1e6:,.1f} MB, {limit}")
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()


def read_directory_size(file: BinaryIO) -> int:
    """Return the bytes of the central directory that zipfile would read.

    Raises:
        zipfile.BadZipFile: readers may disagree about where the zip ends, or there is no zip.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16) - END.size))
    tail = file.read()
    start = tail.rfind(END_SIGNATURE)
    if start < 0 or start + END.size > len(tail):
        raise zipfile.BadZipFile("File is not a zip file")
    *_, directory_size, _, comment_size = END.unpack_from(tail, start)
    if start + END.size + comment_size != len(tail):
        raise zipfile.BadZipFile("it does not end with its comment")
    locator = start - ZIP64_LOCATOR.size
    if locator < 0 or not tail.startswith(ZIP64_LOCATOR_SIGNATURE, locator):
        return directory_size
    _, _, offset, _ = ZIP64_LOCATOR.unpack_from(tail, locator)
    wide = locator - ZIP64_END.size
    if wide < 0 or offset != size - len(tail) + wide or not tail.startswith(ZIP64_END_SIGNATURE, wide):
        raise zipfile.BadZipFile("its zip64 records contradict each other")
    *_, directory_size, _ = ZIP64_END.unpack_from(tail, wide)
    return directory_size


def shorten(name: str) -> str:
    """Return the beginning of a name for a message."""
    return repr(name if len(name) <= 60 else f"{name[:60]}...")


def find_bad_names(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield problems of names that lie outside the package or are not usable, and of links and devices."""
    if len(entries) > MAX_ENTRIES:
        yield f"{len(entries):,} entries, more than {MAX_ENTRIES:,}"
    for entry in entries:
        name = entry.filename
        if len(name) > MAX_PATH_CHARS or name.count("/") > MAX_DEPTH:
            yield f"{shorten(name)} is longer than {MAX_PATH_CHARS:,} characters or deeper than {MAX_DEPTH} folders"
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            yield f"{shorten(name)} leads out of the bundle"
        if not (path.parts and name.isprintable() and all(map(is_usable, path.parts))):
            yield f"{shorten(name)} is not a valid file name"
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield f"{shorten(name)} is a link or a device"


def is_usable(part: str) -> bool:
    """Return whether common file systems can hold a file of this name."""
    folded = fold(part)
    return bool(folded) and len(part.encode()) <= MAX_NAME_BYTES and folded.split(".")[0].rstrip() not in RESERVED_NAMES


def fold(part: str) -> str:
    """Return what names have in common that are one to Windows or macOS: case, Unicode form, dots at the end."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold()).rstrip(". ")


def find_clashes(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield names that some file systems take for the name of another file."""
    tree = {}  # folded component -> (as first written, tree of the components below it; None for a file)
    for entry in entries:
        below, parts = tree, PurePosixPath(entry.filename).parts
        for number, part in enumerate(parts, 1):
            key, is_file = fold(part), number == len(parts) and not entry.is_dir()
            is_new = key not in below
            written, below = below.setdefault(key, (part, None if is_file else {}))
            if is_file != (below is None):
                yield f"{shorten(entry.filename)} is both a file and a folder"
                return
            if not is_new and (is_file or written != part):
                yield f"{shorten(entry.filename)} clashes with another name"


def find_bombs(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    """Yield declared sizes that exceed the limits, shared bytes, and compression that zipfile does not bound."""
    total = sum(entry.file_size for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        yield f"unpacks to {total / 1e6:,.0f} MB, more than {MAX_UNPACKED_BYTES / 1e6:.0f} MB"
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            yield f"{shorten(entry.filename)} is not compressed by deflate"
        if entry.file_size > max(MIN_RATIO_BYTES, MAX_COMPRESSION_RATIO * entry.compress_size):
            ratio = entry.file_size / max(1, entry.compress_size)
            yield f"{shorten(entry.filename)} grows {ratio:,.0f} times, more than {MAX_COMPRESSION_RATIO}"
    for first, second in pairwise(sorted(entries, key=lambda entry: entry.header_offset)):
        if first.header_offset + LOCAL_HEADER_BYTES + first.compress_size > second.header_offset:
            yield f"{shorten(second.filename)} overlaps the bytes of another name"
