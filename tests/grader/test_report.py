"""Test what is printed and written: no name and no reason can pass for something else."""

import csv
import io
import json
import os
import re
import subprocess

import pytest

from grader import report
from grader.grader import Grade
from grader.score import PartGrade
from tests.fake_bundle import ROOT, grader_command, run_grader, write_package, write_zip

NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch


@pytest.mark.parametrize("text", ["=1+1", "\t-1", "a;=1+1", 'a,"@x', "x; '\"+1", "＝1"])
def test_spreadsheets_evaluate_no_cell(tmp_path, text):
    """Whether they split lines at commas or at semicolons."""
    graded = report.to_json(Grade(f"{text}.zip", refused=f"{text}; =2"))
    report.write_csv(tmp_path / "a.csv", [report.make_row(graded)])
    content = (tmp_path / "a.csv").read_text(encoding="utf-8")
    for delimiter in ",;":
        for row in csv.reader(io.StringIO(content), delimiter=delimiter):
            assert not [cell for cell in row if cell.strip(' "').startswith(("=", "+", "-", "@", "＝"))]


def test_outputs_hold_no_control_characters(tmp_path):
    """Line breaks, ANSI, bidi marks, undecodable bytes; blanks imitate no columns, long names widen no table."""
    name = "a\x1b[2J\n\u202e\udcff.zip          50     55    105"
    graded = report.to_json(Grade(name, [PartGrade("vlm", reason='the bundle says "x\r\u2028"')]))
    long = report.to_json(Grade("l" * 255 + ".zip", refused="x"))
    rows = [report.make_row(graded), report.make_row(long)]
    report.write_csv(tmp_path / "a.csv", rows)
    report.write_reports(tmp_path / "a.json", [graded])
    for one in (graded, long):
        report.write_feedback(tmp_path / "feedback", one)
    report.write_gradescope(tmp_path / "results.json", graded)
    files = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    for text in (*files, report.format_table(rows), report.format_grade(graded)):
        assert all(line.isprintable() for line in text.split("\n"))
    head, first, _ = report.format_table(rows).splitlines()
    assert re.search(r"zip 50 55 105 +0 +0 +0 ", first) and len(head) < 100


def test_a_name_that_the_terminal_cannot_encode_ends_nothing(place, tmp_path):
    """Results are written, and shown with escapes."""
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    models = NO_CLIP + "def load_vlm(): raise ValueError('\u65e5\u672c \\udc80 \u202e')"
    write_zip(bundles / "Jos\u00e9.zip", write_package(tmp_path / "package", models))
    (bundles / os.fsdecode(b"\xff.zip")).write_bytes(b"no zip")
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = grader_command(bundles, place / "data", "--csv", tmp_path / "a.csv", "--feedback", tmp_path / "f")
    done = subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONUTF8": "0"}, capture_output=True)
    assert (done.returncode, done.stderr.decode("ascii").count("Traceback")) == (1, 0)
    assert "Jos\\xe9.zip" in done.stdout.decode("ascii") and "ValueError: \\u65e5" in done.stdout.decode("ascii")
    assert "Jos\u00e9.zip,0,0,0" in (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"Jos\u00e9.zip.txt", "\\xff.zip.txt"}
    single = grader_command(bundles / os.fsdecode(b"\xff.zip"), place / "data")
    done = subprocess.run(single, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(b"error: ")


def test_results_are_written_before_they_are_shown(place, tmp_path):
    """A reader of stdout that has gone takes nothing away."""
    package = write_package(tmp_path / "package", NO_CLIP)
    reader, writer = os.pipe()
    os.close(reader)
    command = grader_command(package, place / "data", "--json", tmp_path / "r.json")
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141 and "Error" not in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["total"] == 50


def test_gradescope_results(place, tmp_path):
    """Points, and text without answers; a refused upload has a result too."""
    upload, results = tmp_path / "submission", tmp_path / "results.json"
    write_package(upload / "my_homework", NO_CLIP)  # Gradescope unpacks a zip
    done = run_grader(upload, place / "data", "--gradescope", results)
    assert done.stdout.endswith("total 50 of 100 points\n")
    content = json.loads(results.read_text())
    assert content["score"] == 50 and content["stdout_visibility"] == "hidden" and content["execution_time"] >= 0
    assert [(test["name"], test["score"], test["max_score"]) for test in content["tests"]] == [
        ("VLM", 50, 50),
        ("CLIP", 0, 50),
    ]
    assert "accuracy     70.0% (7 of 10)" in content["tests"][0]["output"]
    assert 'the bundle says "homework.load_clip(): OSError: none"' in content["tests"][1]["output"]
    assert {test["visibility"] for test in content["tests"]} == {"visible"} and "abyss" not in results.read_text()
    (upload / "__MACOSX").mkdir()
    done = run_grader(upload, place / "data", "--gradescope", results)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {upload}: holds neither a zip nor one package")
    content = json.loads(results.read_text())
    assert content["score"] == 0 and "holds neither a zip nor one package" in content["tests"][0]["output"]


def test_gradescope_takes_one_bundle(place, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.zip").write_bytes(b"")
    done = run_grader(tmp_path, place / "data", "--gradescope", tmp_path / "results.json")
    assert done.returncode == 2 and "holds 2 bundles" in done.stderr
