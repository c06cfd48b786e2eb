"""Zips that must be refused before anything is extracted: a builder and the reason for each."""

import stat
import struct
import zipfile
from pathlib import Path

from grader.unpack import MAX_ZIP_BYTES
from tests.fake_bundle import write_zip


def with_names(*names):
    """Build the good bundle with more empty files."""
    return lambda path, good: write_zip(path, good, names)


def with_entry(name, content=b"", mode=None, method=zipfile.ZIP_DEFLATED):
    def build(path, good):
        with zipfile.ZipFile(write_zip(path, good), "a") as archive:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if mode is not None:
                info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, content)
        return path

    return build


def with_declared_size(size, content=b"x" * 5_000_000):
    """Build a zip whose last entry declares a wrong size in both of its headers."""

    def build(path, good):
        with_entry("homework/z.bin", content)(path, good)
        data = bytearray(path.read_bytes())
        entry = zipfile.ZipFile(path).getinfo("homework/z.bin")
        central = data.rfind(b"PK\x01\x02")
        struct.pack_into("<I", data, entry.header_offset + 22, size)
        struct.pack_into("<I", data, central + 24, size)
        path.write_bytes(data)
        return path

    return build


def with_flag(bit):
    def build(path, good):
        data = bytearray(write_zip(path, good).read_bytes())
        for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.find(header) + offset] |= bit
        path.write_bytes(data)
        return path

    return build


def build_overlapping(path: Path, good: Path) -> Path:
    """Build a zip in which two directory entries share one file's bytes."""
    with_entry("homework/a.bin", b"x" * 900_000)(path, good)
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("homework/a.bin")
        second = zipfile.ZipInfo("homework/b.bin")
        for name in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
            setattr(second, name, getattr(first, name))
        archive.filelist.append(second)
        archive.NameToInfo[second.filename] = second
        archive._didModify = True
    return path


def with_bytes(content):
    def build(path, good):
        path.write_bytes(content)
        return path

    return build


def build_empty(path, good):
    zipfile.ZipFile(path, "w").close()
    return path


REFUSED = {
    "slip": (with_names("homework/../../a.py"), "leads out of the bundle"),
    "absolute": (with_names("/etc/a.py"), "leads out of the bundle"),
    "windows_slip": (with_names("homework\\..\\..\\a.py"), "leads out of the bundle"),
    "windows_drive": (with_names("homework/C:/a.py"), "leads out of the bundle"),
    "two_folders": (with_names("other/a.py"), "expected one top-level folder"),
    "data_beside_it": (with_names("data/valid_grader/balanced_qa_pairs.json"), "expected one top-level folder"),
    "file_beside_it": (with_names("sitecustomize.py"), "expected one top-level folder"),
    "folder_in_capitals": (with_names("HOMEWORK/a.py"), "expected one top-level folder"),
    "link": (with_entry("homework/a", b"/etc/passwd", stat.S_IFLNK | 0o777), "link or a device"),
    "device": (with_entry("homework/a", b"", stat.S_IFCHR | 0o666), "link or a device"),
    "pipe": (with_entry("homework/a", b"", stat.S_IFIFO | 0o666), "link or a device"),
    "same_name_twice": (with_names("homework/models.py"), "clashes"),
    "same_name_in_capitals": (with_names("homework/Models.py"), "clashes"),
    "same_name_composed": (with_names("homework/\u00e9.py", "homework/e\u0301.py"), "clashes"),
    "same_folder_in_capitals": (with_names("homework/a/b.py", "homework/A/c.py"), "clashes"),
    "file_and_folder": (with_names("homework/models.py/a.py"), "both a file and a folder"),
    "same_name_with_a_dot": (with_names("homework/./models.py"), "clashes"),
    "line_break_in_a_name": (with_names("homework/a\n50 points.py"), "is not a valid file name"),
    "long_name": (with_names(f"homework/{'a' * 300}.py"), "is not a valid file name"),
    "bomb": (with_entry("homework/a.bin", bytes(5_000_000)), "grows .* times"),
    "bomb_by_bzip2": (with_entry("homework/a.bin", bytes(500_000), method=zipfile.ZIP_BZIP2), "by deflate"),
    "bomb_by_lzma": (with_entry("homework/a.bin", bytes(500_000), method=zipfile.ZIP_LZMA), "by deflate"),
    "bomb_that_declares_its_size": (with_declared_size(4_000_000_000), "unpacks to 4,000 MB, more than 250 MB"),
    "bomb_with_false_size": (with_declared_size(1000), "not a readable zip"),
    "overlapping_files": (build_overlapping, "not a readable zip|another name"),
    "many_files": (with_names(*(f"homework/{n}" for n in range(2001))), "2,004 entries, more than 2,000"),
    "encrypted": (with_flag(1), "not a readable zip"),
    "too_large": (with_bytes(bytes(MAX_ZIP_BYTES + 1)), "more than 50 MB"),
    "not_a_zip": (with_bytes(b"PK, but not a zip"), "not a readable zip"),
    "empty": (build_empty, "found nothing"),
}
