"""The grader's command line on a folder of bundles, and on a system that offers less."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grader.runner import PartError, not_enforced, run_part
from grader.unpack import unpacked
from tests.conftest import heed_ctrl_c
from tests.fake_bundle import write_data, write_package, write_zip

ROOT = Path(__file__).parents[2]
NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data, and a folder of bundles: good, one that answers nothing, one that is no zip, one with an odd name."""
    root = tmp_path_factory.mktemp("many")
    write_data(root)
    (root / "bundles").mkdir()
    mute = NO_CLIP + "VLM.answer = lambda self, paths, questions: []"
    for name, models in {"=good": NO_CLIP, "mute": mute}.items():
        write_zip(root / "bundles" / f"{name}.zip", write_package(root / name, models))
    (root / "bundles" / "broken\x1b.zip").write_bytes(b"no zip")
    (root / "bundles" / "notes.txt").write_text("not graded")
    return root


def grade(place, bundle, *flags, **settings):
    command = [sys.executable, "-m", "grader", bundle, "--data", place / "data", "--timeout", 600, *flags]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, **settings)


def test_grades_a_folder(place, tmp_path):
    """A line a bundle on the screen, the same as CSV, all as JSON; one refused or failed is exit status 1."""
    flags = ("--workers", 2, "--csv", tmp_path / "points.csv", "--json", tmp_path / "report.json")
    done = grade(place, place / "bundles", *flags)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["bundle", "VLM", "CLIP", "total", "s"] and len(lines) == 5
    assert lines[1].startswith("=good.zip     50.0    0.0   50.0") and "CLIP: homework.load_clip()" in lines[1]
    assert "VLM: homework.data.benchmark" not in lines[3] and "VLM: vlm.answer: 0 answers to 1 questions" in lines[3]
    assert "\x1b" not in done.stdout + done.stderr and "not a readable zip" in lines[2]
    with open(tmp_path / "points.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    points = {row["bundle"]: row["vlm"] for row in rows}
    # a spreadsheet would compute a name that begins with =
    assert points == {"'=good.zip": "50.0", "broken .zip": "0.0", "mute.zip": "0.0"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["total"] for entry in report] == [50, 0, 0] and report[1]["parts"] == {}
    assert len(report[0]["parts"]["vlm"]["samples"]) == 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_nothing(place, tmp_path, number, status):
    """It waits for no bundle's time limit, starts none that waits, and takes its temporary folders away."""
    for name in "abc":
        write_zip(tmp_path / f"{name}.zip", write_package(tmp_path / name, "import time; time.sleep(1000)"))
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "grader", tmp_path, "--data", place / "data", "--workers", 2]
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    grader = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, preexec_fn=heed_ctrl_c, **pipes)
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "temporary").glob("*/homework"))) < 2:
        assert time.monotonic() < deadline and grader.poll() is None
        time.sleep(0.05)
    grader.send_signal(number)
    assert grader.communicate(timeout=20)[0] == b""
    assert grader.returncode == status
    assert list((tmp_path / "temporary").iterdir()) == []


def test_interrupted_it_keeps_what_is_graded(place, tmp_path):
    """Table, CSV and JSON have the bundles that were done; of one that was cut short nothing is said."""
    write_zip(tmp_path / "a.zip", write_package(tmp_path / "a", NO_CLIP))
    write_zip(tmp_path / "b.zip", write_package(tmp_path / "b", "import time; time.sleep(1000)"))
    command = [sys.executable, "-m", "grader", tmp_path, "--data", place / "data", "--csv", tmp_path / "points.csv"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    grader = subprocess.Popen([*map(str, command)], cwd=ROOT, preexec_fn=heed_ctrl_c, **streams)
    while "a.zip" not in (line := grader.stderr.readline()):
        assert line
    time.sleep(0.5)
    grader.send_signal(signal.SIGINT)
    out, err = grader.communicate(timeout=20)
    assert grader.returncode == 130 and "b.zip" not in out + err
    assert [line.split(",")[0] for line in (tmp_path / "points.csv").read_text().splitlines()] == ["bundle", "a.zip"]
    assert "a.zip" in out


def test_a_folder_without_bundles(place, tmp_path):
    done = grade(place, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_a_data_set_that_lacks_an_image(place, tmp_path):
    data = write_data(tmp_path)
    (data / "valid" / "00003_00_im.jpg").unlink()
    done = grade(tmp_path, place / "bundles" / "mute.zip")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "00003_00_im.jpg: no such image" in done.stderr


def without(*names):
    """Make system calls unknown to a process and to all that it starts, as on a kernel that lacks them."""
    seccomp = pytest.importorskip("pyseccomp")

    def restrict():
        rules = seccomp.SyscallFilter(seccomp.ALLOW)
        for name in names:
            rules.add_rule(seccomp.ERRNO(38), name)
        if "seccomp" in names:
            rules.add_rule(seccomp.ERRNO(22), "prctl", seccomp.Arg(0, seccomp.EQ, 22))
        rules.load()

    return restrict


@pytest.mark.skipif(bool(not_enforced()), reason="this system does not enforce every limit")
@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (["landlock_create_ruleset"], "not enforced: files: no Landlock"),
        (["seccomp"], "not enforced: network, processes, signals: no seccomp"),
    ],
)
def test_says_what_it_cannot_enforce(place, tmp_path, calls, line):
    """It grades all the same, with Python's audit hooks alone; unless the sandbox is required."""
    models = NO_CLIP + "def load_vlm():\n    for act in (lambda: open('/etc/passwd'), os.fork):\n"
    models += "        try: act()\n        except PermissionError: continue\n        os._exit(1)\n    return VLM()\n"
    package = write_package(tmp_path / "bundle", models)
    done = grade(place, package, preexec_fn=without(*calls))
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(line)
    assert "VLM   50.0 of 50 points" in done.stdout
    refused = grade(place, package, "--require-sandbox", preexec_fn=without(*calls))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[0].startswith(line) and "leave --require-sandbox out" in refused.stderr


@pytest.mark.skipif(bool(not_enforced()), reason="this system does not enforce every limit")
def test_memory_is_bounded(place, tmp_path):
    """In small pieces too: what a bundle fills, not what it reserves."""
    models = "def load_vlm():\n    kept = []\n    while True: kept.append(bytes(100_000))"
    with unpacked(write_package(tmp_path / "bundle", models)) as root, pytest.raises(PartError, match="MemoryError"):
        run_part("vlm", root, 60, memory=200_000_000)


def test_an_honest_bundle_has_the_same_score_outside(place, tmp_path):
    """Its answers, asked in a plain process that nothing shuts in, give the score that the grader gave."""
    package = write_package(tmp_path / "outside" / "homework", NO_CLIP)
    (tmp_path / "outside" / "data").symlink_to(place / "data")
    code = """
import homework
rows, vlm = homework.data.VQADataset("valid_grader"), homework.load_vlm()
answers = [vlm.answer([row["image_path"]], [row["question"]])[0].lower() for row in rows]
print("\\n", sum(a.startswith(row["answer"]) for a, row in zip(answers, rows)) / len(rows))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "outside", capture_output=True, text=True)
    report = tmp_path / "report.json"
    grade(place, package, "--json", report)
    assert json.loads(report.read_text())["parts"]["vlm"]["accuracy"] == float(done.stdout.splitlines()[-1]) == 0.7


@pytest.mark.slow
def test_the_submission_has_the_same_answers_outside(tiny_data, tmp_path):
    """The shipped models, every answer of both: asked here, and by the grader of their bundle."""
    import bundle
    import homework
    from grader.worker import choose
    from homework.models.loading import DEFAULT_BASE, load_processor

    bundle.bundle(ROOT / "homework", tmp_path / "mine.zip")
    flags = ["--data", tiny_data, "--timeout", 600, "--json", tmp_path / "r.json"]
    command = [sys.executable, "-m", "grader", tmp_path / "mine.zip", *flags]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    parts = json.loads((tmp_path / "r.json").read_text())["parts"]
    inside = [[sample["model_answer"] for sample in parts[part]["samples"]] for part in ("vlm", "clip")]
    pairs = homework.data.VQADataset("valid_grader", tiny_data)
    outside = [sample.model_answer for sample in homework.data.benchmark(homework.load_vlm(), pairs).samples]
    clip, tokenizer = homework.load_clip(), load_processor(DEFAULT_BASE).tokenizer
    rows = homework.data.MultiChoiceQADataset("valid_grader", tiny_data)
    assert inside == [outside, [choose(clip, tokenizer, row["image_path"], row["candidates"]) for row in rows]]
    numbers = [sum(p.numel() for p in model.model.parameters()) for model in (homework.load_vlm(), clip)]
    assert numbers == [parts["vlm"]["parameters"], parts["clip"]["parameters"]]
