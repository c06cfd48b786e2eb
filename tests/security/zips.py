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


def with_directory(path: Path, content: bytes, end: bytes = b"") -> Path:
    """Build a zip of nothing but a central directory; `end` comes before its last record."""
    size = min(len(content), 2**32 - 1)
    path.write_bytes(content + end + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, size, 0, 0))
    return path


def build_million_entries(path, good):
    return with_directory(path, (b"PK\1\2" + bytes(42)) * 1_000_000)


def build_million_entries_zip64(path, good):
    """The old record says that the directory is empty, the new one that it is not."""
    content = (b"PK\1\2" + bytes(42)) * 1_000_000
    size = len(content)
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**6, 10**6, size, 0)
    end += struct.pack("<4sLQL", b"PK\6\7", 0, size, 1)
    with_directory(path, content, end)
    data = bytearray(path.read_bytes())
    data[-10:-6] = bytes(4)
    path.write_bytes(data)
    return path


def build_impossible_offset(path, good):
    """The zip64 field of a file says that it begins at the highest place there is."""
    data = with_entry("homework/a.bin", b"a")(path, good).read_bytes()
    start = data.rfind(b"PK\1\2")
    entry, end = bytearray(data[start:-22]), bytearray(data[-22:])
    struct.pack_into("<L", entry, 42, 2**32 - 1)
    struct.pack_into("<H", entry, 30, 12)
    entry += struct.pack("<2HQ", 1, 8, 2**63 - 1)
    struct.pack_into("<L", end, 12, struct.unpack_from("<L", end, 12)[0] + 12)
    path.write_bytes(data[:start] + entry + end)
    return path


def build_two_ends(path, good):
    """A reader that follows the zip64 locator's offset finds another record than one that looks before it."""
    data = write_zip(path, good).read_bytes()
    path.write_bytes(data[:-22] + struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1) + data[-22:])
    return path


def with_comments(size):
    """Build the good bundle with long comments and extra fields."""

    def build(path, good):
        with zipfile.ZipFile(write_zip(path, good), "a") as archive:
            for number in range(20):
                info = zipfile.ZipInfo(f"homework/{number}")
                info.comment, info.extra = b"c" * size, struct.pack("<2H", 0x9999, size) + bytes(size)
                archive.writestr(info, "")
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
    "two_folders": (with_names("other/a.py"), "expected one top-level folder, found homework, other; remove other"),
    "folder_of_macos": (
        with_names("__MACOSX/homework/._models.py"),
        "found __MACOSX, homework; remove __MACOSX from it",
    ),
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
    "same_name_with_a_dot_at_the_end": (with_names("homework/models.py."), "clashes"),
    "same_name_with_a_space_at_the_end": (with_names("homework/Models.py ."), "clashes"),
    "same_name_in_full_width": (with_names("homework/ｍodels.py"), "clashes"),
    "same_folder_with_a_dot": (with_names("homework/a/b.py", "homework/a./c.py"), "clashes"),
    "stream_of_windows": (with_names("homework/models.py::$DATA"), "leads out of the bundle"),
    "device_of_windows": (with_names("homework/aux.py"), "is not a valid file name"),
    "device_of_windows_in_capitals": (with_names("homework/COM¹ .tar.gz"), "is not a valid file name"),
    "name_of_dots": (with_names("homework/... /a.py"), "is not a valid file name"),
    "deep_name": (with_names("homework/" + "a/" * 32_000 + "b"), "deeper than 50 folders"),
    "many_deep_names": (with_names(*(f"homework/{n}/" + "a/" * 240 for n in range(900))), "deeper than 50 folders"),
    "many_long_names": (with_names(*(f"homework/{n}{'a' * 65000}" for n in range(20))), "list of files of 1.3 MB"),
    "long_path": (with_names("homework/" + f"{'a' * 200}/" * 6), "longer than 1,000 characters"),
    "million_entries": (build_million_entries, "list of files of 46.0 MB"),
    "million_entries_zip64": (build_million_entries_zip64, "list of files of 46.0 MB"),
    "two_ends": (build_two_ends, "zip64 records contradict"),
    "impossible_offset": (build_impossible_offset, "not a readable zip"),
    "bytes_after_the_end": (with_bytes(b"PK\5\6" + bytes(18) + b"more"), "does not end with its comment"),
    "long_comments": (with_comments(60_000), "list of files of 2.4 MB"),
    "bomb": (with_entry("homework/a.bin", bytes(5_000_000)), "grows .* times"),
    "bomb_by_bzip2": (with_entry("homework/a.bin", bytes(500_000), method=zipfile.ZIP_BZIP2), "by deflate"),
    "bomb_by_lzma": (with_entry("homework/a.bin", bytes(500_000), method=zipfile.ZIP_LZMA), "by deflate"),
    "bomb_that_declares_its_size": (with_declared_size(4_000_000_000), "unpacks to 4,000 MB, more than 250 MB"),
    "bomb_with_false_size": (with_declared_size(1000), "not a readable zip"),
    "overlapping_files": (build_overlapping, "overlaps the bytes of another name"),
    "many_files": (with_names(*(f"homework/{n}" for n in range(2001))), "2,004 entries, more than 2,000"),
    "encrypted": (with_flag(1), "not a readable zip"),
    "too_large": (with_bytes(bytes(MAX_ZIP_BYTES + 1)), "more than 50 MB"),
    "not_a_zip": (with_bytes(b"PK, but not a zip"), "not a readable zip"),
    "empty": (build_empty, "found nothing"),
}
