"""Bundles that are refused before anything is extracted; tests/security has the hostile zips."""

import zipfile

import pytest

from grader.unpack import unpack_bundle
from homework.utils.errors import InputError
from tests.fake_bundle import write_zip


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["other/a.py"], "expected one top-level folder, homework, found homework, other"),
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


def test_removes_the_temporary_folder(place):
    with unpack_bundle(place / "good.zip") as root:
        assert (root / "homework" / "models.py").is_file()
    assert not root.exists()
