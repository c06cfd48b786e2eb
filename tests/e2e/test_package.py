"""`pip install .` installs every module and data file of the packages."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("homework", "pretrain", "supertux", "export", "grader", "viewer", "benchmarks")
NEEDED = ("pyproject.toml", "README.md", "requirements.txt", "LICENSE", "CREDITS.md", "LICENSES", *PACKAGES)
NOT_PACKED = {".md", ".pyc"}


def test_a_wheel_has_every_file(tmp_path: Path):
    """The weights are stood in for by empty files, so that this is quick."""
    source = tmp_path / "source"
    source.mkdir()
    for name in NEEDED:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
        else:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for weights in (file for name in PACKAGES for file in (ROOT / name).rglob("*.safetensors")):
        (source / weights.relative_to(ROOT)).touch()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    done = subprocess.run([*command, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(*tmp_path.glob("*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    files = (file for name in PACKAGES for file in (source / name).rglob("*") if file.is_file())
    assert packed == {file.relative_to(source).as_posix() for file in files if file.suffix not in NOT_PACKED}


def test_the_pinned_versions_fit_loose_lower_bounds():
    """Every library of requirements.txt but the tests' has one: an installation keeps the torch that is there."""
    pins, _, tests = (ROOT / "requirements.txt").read_text().partition("# tests\n")
    pinned, tested = (
        {each.name: each for line in text.splitlines() if "==" in line for each in [Requirement(line)]}
        for text in (pins, tests)
    )
    loose = [
        Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    assert {each.name for each in loose} == pinned.keys() and "pytest" in tested
    for each in loose:
        assert [spec.operator for spec in each.specifier] == [">="], each
        assert next(iter(pinned[each.name].specifier)).version in each.specifier, each
