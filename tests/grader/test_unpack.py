"""Bundles that are refused before anything is extracted; tests/security has the hostile zips."""

import os
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from grader.redact import read_truth, write_redacted_data
from grader.runner import run_part
from grader.unpack import unpack_bundle
from homework.utils.errors import InputError
from tests.fake_bundle import ROOT, write_package, write_zip
from tests.security.zips import REFUSED


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["other/a.py"], "expected one top-level folder, found homework, other; remove other from it"),
        (["README.md"], "expected one top-level folder"),
        (["homework/../../a.py"], "leads out of the bundle"),
        (["/etc/a.py"], "leads out of the bundle"),
        (["homework\\..\\a.py"], "leads out of the bundle"),
        (["./a.py"], "expected one top-level folder"),
    ],
)
def test_refuses_names(place, tmp_path, names, reason):
    bundle = write_zip(tmp_path / "a.zip", place / "good", names)
    with pytest.raises(InputError, match=reason), unpack_bundle(bundle):
        pass


def test_refuses_links(place, tmp_path):
    with zipfile.ZipFile(write_zip(tmp_path / "a.zip", place / "good"), "a") as archive:
        link = zipfile.ZipInfo("homework/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="link or a device"), unpack_bundle(tmp_path / "a.zip"):
        pass


def test_refuses_other_files_and_folders(place, tmp_path):
    truncated = tmp_path / "truncated.zip"
    truncated.write_bytes((place / "good.zip").read_bytes()[:-30])
    broken = bytearray((place / "good.zip").read_bytes())
    broken[60] ^= 0xFF  # in the first file's bytes: its checksum fails
    (tmp_path / "broken.zip").write_bytes(broken)
    (tmp_path / "large.zip").write_bytes(bytes(50_000_001))
    write_zip(tmp_path / "bare.zip", tmp_path, ["homework/"])
    (tmp_path / "folder").mkdir()
    for name, reason in {
        **{"truncated.zip": "not a readable zip", "broken.zip": "not a readable zip", "large.zip": "more than 50 MB"},
        **{"bare.zip": "no __init__.py", "folder": "no __init__.py", "nowhere.zip": "no such file"},
    }.items():
        with pytest.raises(InputError, match=reason), unpack_bundle(tmp_path / name):
            pass


@pytest.mark.parametrize("name", ["mine", "./homework", "torch", "data", "json", "no identifier", "__main__"])
def test_one_top_level_folder_of_any_name_becomes_homework(place, tmp_path, name):
    """Its modules may import each other by that name too, unless it is a library's."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (place / "good").iterdir():
            archive.write(file, f"{name}/{file.name}")
    with unpack_bundle(tmp_path / "a.zip") as root:
        assert (root / "homework" / "models.py").is_file()
        own = {path.name for path in root.iterdir()} - {"homework"}
        assert own == ({name} if name in ("mine", "__main__") else set())


@pytest.mark.parametrize("name", ["homework", "hw_of_me"])
def test_bundles_may_import_themselves_by_their_name(place, tmp_path, name):
    models = f"from {name} import data as own\nimport homework.data\n"
    models += "assert Path(own.__file__).samefile(homework.data.__file__)"
    package = write_package(tmp_path / name, "from pathlib import Path\n" + models)
    with unpack_bundle(package) as root:
        write_redacted_data(read_truth(place / "data"), root / "data")
        assert len(run_part("vlm", root, 60).records) == 10


def test_honest_zips_of_other_tools(place, tmp_path, monkeypatch):
    """Comments, as GitHub adds them, zip64 records and bytes before the zip are part of the format."""
    bundle = write_zip(tmp_path / "a.zip", place / "good")
    plain = bundle.read_bytes()
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.comment = b"c" * 65_535
    commented = bundle.read_bytes()
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    wide = write_zip(tmp_path / "a.zip", place / "good").read_bytes()
    assert b"PK\6\6" in wide
    for content in (plain, commented, wide, b"#!/bin/sh" + plain):
        bundle.write_bytes(content)
        with unpack_bundle(bundle) as root:
            assert (root / "homework" / "models.py").is_file()


def test_pipes_and_devices_are_not_waited_for(place, tmp_path):
    package = write_package(tmp_path / "package")
    for path in (tmp_path / "pipe.zip", package / "pipe"):
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.zip"))
    for path in (tmp_path / "pipe.zip", tmp_path / "socket.zip", package, "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file|not readable"), unpack_bundle(path):
            pass


def test_folders_have_limits(tmp_path):
    many, deep = write_package(tmp_path / "many"), write_package(tmp_path / "deep")
    for number in range(2000):
        (many / str(number)).touch()
    os.makedirs(deep / ("a/" * 60))
    for name in ("many", "deep"):
        with pytest.raises(InputError, match="more than 2,000 files, or deeper"), unpack_bundle(tmp_path / name):
            pass


def test_unpacking_has_a_time_limit(place, monkeypatch):
    monkeypatch.setattr("grader.unpack.MAX_SECONDS", -1)
    for name in ("good.zip", "good"):
        with pytest.raises(InputError, match="unpacking takes more than"), unpack_bundle(place / name):
            pass


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_names_cost_little_before_they_are_refused(place, tmp_path):
    """The whole process stays under 200 MB and 1.5 s of CPU time, Python's start included."""
    code = """
import sys, time
from grader.unpack import InputError, unpack_bundle
try:
    with unpack_bundle(sys.argv[1]): pass
except InputError:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1e3, time.process_time())
"""
    for name in ("deep_name", "many_deep_names", "many_long_names", "million_entries", "million_entries_zip64"):
        bundle = REFUSED[name][0](tmp_path / "a.zip", place / "good")
        done = subprocess.run([sys.executable, "-c", code, bundle], cwd=ROOT, capture_output=True, text=True)
        megabytes, seconds = map(float, done.stdout.split())
        assert megabytes < 200 and seconds < 1.5, name


def test_a_folder_that_cannot_be_removed_is_named(place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with unpack_bundle(place / "good.zip") as root:
        if subprocess.run(["chattr", "+i", root / "homework"], capture_output=True).returncode:
            pytest.skip("needs root and a file system with immutable folders")
    subprocess.run(["chattr", "-i", root / "homework"], check=True)
    assert caplog.messages == [f"{root}: cannot be removed; remove it by hand"]


def test_removes_the_temporary_folder(place):
    with unpack_bundle(place / "good.zip") as root:
        assert (root / "homework" / "models.py").is_file()
    assert not root.exists()
