"""The grader's command line: one bundle, many, interruptions, and systems without a sandbox."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from grader.grader import find_bundles
from grader.runner import probe_sandbox
from homework.labels.rows import SAMPLE_MARKER
from tests.conftest import heed_ctrl_c
from tests.fake_bundle import ROOT, grader_command, run_grader, write_data, write_package, write_zip

NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch
SLEEP = "import time; time.sleep(1000)"


def grade(place, bundle, *flags):
    return run_grader(bundle, place / "data", "--tokenizer", place / "tokenizer", *flags)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder of bundles: one good, one that answers nothing, one that is not a zip, and another file."""
    root = tmp_path_factory.mktemp("many")
    folder = root / "bundles"
    folder.mkdir()
    mute = NO_CLIP + "VLM.answer = lambda self, paths, questions: []"
    for name, models in {"=good": NO_CLIP, "mute": mute}.items():
        write_zip(folder / f"{name}.zip", write_package(root / name, models))
    (folder / "broken\x1b.zip").write_bytes(b"no zip")
    (folder / "notes.txt").write_text("not graded")
    return folder


def test_grades_a_zip(place):
    """Prints of the bundle are dropped, and run from the repository it is still the bundle that is graded."""
    done = grade(place, place / "good.zip", "--json", place / "report.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "printed" not in done.stdout
    assert "VLM   50 of 50 points\n" in done.stdout
    assert "accuracy     70.0% (7 of 10), exact match 0.0%" in done.stdout
    assert "CLIP  50 of 50 points\n" in done.stdout
    assert "accuracy     80.0% (8 of 10), exact match 80.0%" in done.stdout
    assert done.stdout.endswith("total 100 of 100 points\n")
    report = json.loads((place / "report.json").read_text())
    assert report["total"] == 100 and report["parts"]["vlm"]["accuracy_by_type"] == {"ego": 1.0, "track": 0.0}
    clip = report["parts"]["clip"]
    assert clip["parameters"] == 1_000_000
    assert 0 < clip["load_seconds"] < clip["load_seconds"] + clip["answer_seconds"] < clip["seconds"]
    assert report["parts"]["vlm"]["samples"][9]["model_answer"] == "Tux, I think"


def test_says_that_the_questions_are_the_samples(tmp_path):
    """In the title of one bundle, above the table of a class, and in each student's feedback."""
    data, bundles = write_data(tmp_path), tmp_path / "bundles"
    (data / SAMPLE_MARKER).touch()
    bundles.mkdir()
    bundle = write_zip(bundles / "a.zip", write_package(tmp_path / "package", NO_CLIP))
    note = " on valid_grader (the sample's, not the official set)"
    assert run_grader(bundle, data).stdout.splitlines()[0] == f"{bundle}{note}"
    done = run_grader(bundles, data, "--feedback", tmp_path / "feedback")
    assert done.stdout.startswith(f"graded{note}\nbundle ")
    assert (tmp_path / "feedback/a.zip.txt").read_text().startswith(f"a.zip{note}\n")


def test_a_failed_part_leaves_the_other_its_points(place, tmp_path):
    """Grades the package's folder; a part without a score is exit status 1."""
    package = write_package(tmp_path / "mine", "def load_clip(): raise OSError('no weights\\nanywhere')")
    done = grade(place, package)
    assert (done.returncode, done.stderr) == (1, "")
    assert 'CLIP  0 of 50 points: the bundle says "homework.load_clip(): OSError: no weights anywhere"' in done.stdout
    assert done.stdout.endswith("total 50 of 100 points\n")
    assert sorted(path.name for path in package.iterdir()) == ["__init__.py", "data.py", "models.py"]


def test_refused_bundle(place, tmp_path):
    bundle = write_zip(tmp_path / "a.zip", place / "good", ["other/a.py"])
    done = grade(place, bundle)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {bundle}: expected one top-level folder")


@pytest.mark.parametrize("flags", [[], ["--timeout", "0"], ["--timeout", "soon"], ["--workers", "0"], ["--nope"]])
def test_usage_errors(place, flags):
    command = [sys.executable, "-m", "grader", *([place / "good.zip"] if flags else []), *flags]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 2


def test_help_starts_without_torch():
    """Nothing heavy is imported before the command runs."""
    code = "import sys, grader.__main__; assert not {'torch', 'transformers', 'numpy', 'tyro'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_grades_a_folder(place, bundles, tmp_path):
    """One line per bundle on screen and as CSV, everything as JSON; a refused bundle is exit status 1."""
    flags = ("--workers", 2, "--csv", tmp_path / "points.csv", "--json", tmp_path / "report.json")
    done = run_grader(bundles, place / "data", *flags)
    assert done.returncode == 1
    ignored, *lines = done.stdout.splitlines()
    assert ignored.startswith("not graded: ") and "notes.txt" in ignored
    assert lines[0].split() == ["bundle", "VLM", "CLIP", "total", "s"] and len(lines) == 4
    assert (
        lines[1].split()[:4] == ["=good.zip", "50", "0", "50"]
        and 'CLIP: the bundle says "homework.load_clip()' in lines[1]
    )
    assert (
        "VLM: homework.data.benchmark" not in lines[3]
        and 'VLM: the bundle says "vlm.answer: 0 answers to 1 questions"' in lines[3]
    )
    assert "\x1b" not in done.stdout + done.stderr and "not a readable zip" in lines[2]
    with open(tmp_path / "points.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    points = {row["bundle"]: row["vlm"] for row in rows}
    # a spreadsheet would evaluate a name that begins with =
    assert points == {"'=good.zip": "50", "broken\\x1b.zip": "0", "mute.zip": "0"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["total"] for entry in report] == [50, 0, 0] and report[1]["parts"] == {}
    assert len(report[0]["parts"]["vlm"]["samples"]) == 10


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(place, tmp_path, number, status):
    """It waits for no time limit, starts no other bundle, and removes its temporary folders."""
    for name in "abc":
        write_zip(tmp_path / f"{name}.zip", write_package(tmp_path / name, SLEEP))
    (tmp_path / "temporary").mkdir()
    command = grader_command(tmp_path, place / "data", "--workers", 2)
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    grader = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed_ctrl_c, **pipes)
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "temporary").glob("*/homework"))) < 2:
        assert time.monotonic() < deadline and grader.poll() is None
        time.sleep(0.05)
    grader.send_signal(number)
    assert grader.communicate(timeout=20)[0].startswith(b"not graded: ")
    assert grader.returncode == status
    assert list((tmp_path / "temporary").iterdir()) == []


def test_interruption_keeps_finished_grades(place, tmp_path):
    """Table and CSV have the bundles that were finished; the interrupted one is not mentioned."""
    write_zip(tmp_path / "a.zip", write_package(tmp_path / "a", NO_CLIP))
    write_zip(tmp_path / "b.zip", write_package(tmp_path / "b", SLEEP))
    command = grader_command(tmp_path, place / "data", "--csv", tmp_path / "points.csv")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    grader = subprocess.Popen(command, cwd=ROOT, preexec_fn=heed_ctrl_c, **streams)
    while "a.zip" not in (line := grader.stderr.readline()):
        assert line
    time.sleep(0.5)
    grader.send_signal(signal.SIGINT)
    out, err = grader.communicate(timeout=20)
    assert grader.returncode == 130 and "b.zip" not in out + err
    assert [line.split(",")[0] for line in (tmp_path / "points.csv").read_text().splitlines()] == ["bundle", "a.zip"]
    assert "a.zip" in out


def test_a_pipe_among_bundles_is_refused(place, tmp_path):
    """It is not waited for, and the other bundle has its points."""
    os.mkfifo(tmp_path / "pipe.zip")
    write_zip(tmp_path / "z.zip", write_package(tmp_path / "z", NO_CLIP))
    _, *lines = run_grader(tmp_path, place / "data", timeout=120).stdout.splitlines()
    assert "not a regular file" in lines[1] and lines[2].split()[:2] == ["z.zip", "50"]


def test_folder_without_bundles(place, tmp_path):
    done = grade(place, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)


def test_data_without_an_image(bundles, tmp_path):
    data = write_data(tmp_path)
    (data / "valid" / "00003_00_im.jpg").unlink()
    done = run_grader(bundles / "mute.zip", data)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "00003_00_im.jpg: no such image" in done.stderr


def block_calls(*names):
    """Return a function that makes system calls unknown to a process, as on an older kernel."""
    seccomp = pytest.importorskip("pyseccomp")

    def restrict():
        rules = seccomp.SyscallFilter(seccomp.ALLOW)
        for name in names:
            rules.add_rule(seccomp.ERRNO(38), name)
        if "seccomp" in names:
            rules.add_rule(seccomp.ERRNO(22), "prctl", seccomp.Arg(0, seccomp.EQ, 22))
        rules.load()

    return restrict


@pytest.mark.skipif(bool(probe_sandbox().unenforced), reason="this system does not enforce every limit")
@pytest.mark.parametrize(
    ("calls", "line"),
    [
        (["landlock_create_ruleset"], "not enforced: files: no Landlock"),
        (["seccomp"], "not enforced: network, processes, signals: no seccomp"),
    ],
)
def test_prints_unenforced_limits(place, tmp_path, calls, line):
    """It still grades, with Python's audit hooks alone, unless --require-sandbox is given."""
    models = NO_CLIP + "def load_vlm():\n    for act in (lambda: open('/etc/passwd'), os.fork):\n"
    models += "        try: act()\n        except PermissionError: continue\n        os._exit(1)\n    return VLM()\n"
    package = write_package(tmp_path / "bundle", models)
    done = run_grader(package, place / "data", preexec_fn=block_calls(*calls))
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(line)
    assert "VLM   50 of 50 points" in done.stdout
    refused = run_grader(package, place / "data", "--require-sandbox", preexec_fn=block_calls(*calls))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[0].startswith(line) and "omit --require-sandbox" in refused.stderr


def test_a_folders_bundles_are_its_zips_of_any_case(tmp_path, caplog):
    """Hidden files are macOS's own; whatever is passed over is named."""
    for name in ("b.zip", "A.ZIP", "._b.zip", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_bundles(tmp_path)] == ["A.ZIP", "b.zip"]
    assert caplog.messages == ["not graded: ._b.zip, notes.txt"]
