"""Gradescope's autograder: its zip grades uploads in folders shaped as Gradescope's."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fake_bundle import ROOT, write_package, write_zip

NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch


@pytest.fixture(scope="module")
def source(place, tmp_path_factory):
    """The unpacked autograder, with this environment in place of the one that setup.sh installs."""
    root = tmp_path_factory.mktemp("gradescope")
    command = [sys.executable, "-m", "grader.autograder", root / "autograder.zip", "--data", place / "data"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "holds the right answers" in done.stdout
    with zipfile.ZipFile(root / "autograder.zip") as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes["setup.sh"] & modes["run_autograder"] & 0o111 == 0o111
    subprocess.run(["unzip", "-q", root / "autograder.zip", "-d", root / "source"], check=True)
    (root / "source" / ".venv").symlink_to(sys.prefix)
    return root / "source"


def run_autograder(source, place, tmp_path, upload):
    """Run the script as Gradescope does; return results.json."""
    (tmp_path / "results").mkdir()
    (tmp_path / "source").symlink_to(source)
    shutil.copytree(upload, tmp_path / "submission")
    environment = {**os.environ, "AUTOGRADER_ROOT": str(tmp_path)}
    done = subprocess.run([source / "run_autograder"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "results" / "results.json").read_text())


def test_uploads_are_graded(source, place, tmp_path):
    """A zip is unpacked by Gradescope; one in a repository or beside hidden files is not."""
    write_package(tmp_path / "unpacked" / "my_homework", NO_CLIP)
    (tmp_path / "zipped").mkdir()
    write_zip(tmp_path / "zipped" / "ID.zip", tmp_path / "unpacked" / "my_homework")
    (tmp_path / "zipped" / ".DS_Store").touch()
    for name in ("unpacked", "zipped"):
        (tmp_path / f"run_{name}").mkdir()
        results = run_autograder(source, place, tmp_path / f"run_{name}", tmp_path / name)
        assert [test["score"] for test in results["tests"]] == [50, 0], results


def test_uploads_that_are_refused_have_results(source, place, tmp_path):
    for name, files in {"empty": [], "two": ["a.zip", "b.zip"], "notes": ["notes.txt"]}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        (tmp_path / f"run_{name}").mkdir()
        results = run_autograder(source, place, tmp_path / f"run_{name}", tmp_path / name)
        assert results["score"] == 0 and "give " in results["tests"][0]["output"]


def test_setup_installs_what_the_grader_imports(source, tmp_path):
    """apt and venv are stood in for; the requirements that it names exist in the zip."""
    tools = tmp_path / "tools"
    tools.mkdir()
    record = f'#!/bin/bash\necho "${{0##*/}} $*" >> {tmp_path}/calls\n'
    fake_venv = (
        f"{record}mkdir -p .venv/bin && cp {tools}/apt-get .venv/bin/pip && cp {tools}/apt-get .venv/bin/python\n"
    )
    for name, text in {"apt-get": record, "python3": fake_venv}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    shutil.copytree(source, tmp_path / "source", ignore=lambda *_: [".venv"])
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "AUTOGRADER_ROOT": str(tmp_path)}
    subprocess.run(["bash", tmp_path / "source" / "setup.sh"], env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    install = next(line for line in calls if line.startswith("pip install"))
    assert (
        tmp_path / "source" / "grader" / "course_requirements.txt"
    ).is_file() and "course_requirements.txt" in install
    assert all(f" {name}==" in install for name in ("tyro", "msgspec", "pyseccomp"))
    assert any("snapshot_download" in line for line in calls)


def test_no_more_than_needed_is_packed(source):
    """The grader, the contract's code and the tokenizer; no weights, which bundles bring."""
    names = [
        str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and ".venv" not in path.parts
    ]
    assert not [name for name in names if Path(name).suffix == ".safetensors"]
    assert {Path(name).parts[0] for name in names} == {"setup.sh", "run_autograder", "grader", "homework", "data"}
