"""Grades are on the disk as soon as they are made, and a killed run resumes after them."""

import json
import os
import signal
import subprocess
import time

import pytest

from grader.ledger import Ledger, digest_bundle
from homework.utils.errors import InputError
from tests.fake_bundle import ROOT, grader_command, run_grader, write_data, write_package, write_zip

NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch


def write_class(folder, names, models=NO_CLIP):
    for name in names:
        package = write_package(folder / "packages" / name, f"{models}# {name}")
        (folder / "bundles").mkdir(exist_ok=True)
        write_zip(folder / "bundles" / f"{name}.zip", package)
    return folder / "bundles"


def test_a_killed_run_resumes(place, tmp_path):
    """Graded bundles are not run again; those left are, and the outputs have all of them."""
    bundles, kept = write_class(tmp_path, "ab"), tmp_path / "bundles.grades.jsonl"
    write_class(tmp_path, "c", NO_CLIP + "import time; time.sleep(1000)\n")
    command = grader_command(bundles, place / "data", "--timeout", 600)
    grader = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(tmp_path)})
    deadline = time.monotonic() + 60
    while not kept.exists() or kept.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline and grader.poll() is None
        time.sleep(0.05)
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    with kept.open("ab") as stream:
        stream.write(kept.read_bytes()[:100])  # as if it had been killed while it wrote
    (bundles / "a.zip").rename(bundles / "late_a.zip")  # it is the same bundle
    write_zip(bundles / "c.zip", tmp_path / "packages" / "b", ["homework/other"])
    done = run_grader(bundles, place / "data", "--json", tmp_path / "r.json", "--feedback", tmp_path / "feedback")
    assert done.stderr.splitlines()[-2:] == [
        "c.zip: 50 points",
        f"2 of 3 graded before, see {kept}; --regrade grades them again",
    ]
    names = ["b.zip", "c.zip", "late_a.zip"]
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == names
    reports = json.loads((tmp_path / "r.json").read_text())
    assert [report["bundle"] for report in reports] == [str(bundles / name) for name in names]
    assert all(report["total"] == 50 and len(report["parts"]["vlm"]["samples"]) == 10 for report in reports)
    assert sorted(path.name for path in (tmp_path / "feedback").iterdir()) == [f"{name}.txt" for name in names]
    assert "graded before" not in run_grader(bundles, place / "data", "--regrade").stderr


def test_other_conditions_grade_again(place, tmp_path):
    bundles = write_class(tmp_path, "a")
    assert "graded before" not in run_grader(bundles, place / "data").stderr
    assert "1 of 1 graded before" in run_grader(bundles, place / "data").stderr
    assert "graded before" not in run_grader(bundles, place / "data", "--timeout", 599).stderr
    other = write_data(tmp_path)
    assert "1 of 1 graded before" in run_grader(bundles, other).stderr  # the same data in another place
    pairs = other / "valid_grader" / "balanced_qa_pairs.json"
    pairs.write_text(pairs.read_text().replace("abyss", "minigolf"))
    assert "graded before" not in run_grader(bundles, other).stderr


def test_a_ledger_is_one_graders_own_and_nothing_else(tmp_path):
    (tmp_path / "points.csv").write_text("bundle,vlm\n")
    with pytest.raises(InputError, match="not a file of grades"):
        Ledger(tmp_path / "points.csv", {})
    first = Ledger(tmp_path / "grades", {})
    with pytest.raises(InputError, match="another grader is using it"):
        Ledger(tmp_path / "grades", {})
    assert first.read(first.append(None, {"total": 5})) == {"total": 5}
    assert not first.graded  # a failure of the grader is tried again


def test_digests_do_not_wait_for_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    assert digest_bundle(tmp_path / "pipe.zip") is digest_bundle(tmp_path) is None
