"""Format grades as text, a table, JSON, CSV, feedback for students and Gradescope's results.json.

All but `to_json` take the JSON report of a grade, as it is kept in the ledger. Names and reasons are printable in it.
"""

import csv
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from homework.data import MAX_POINTS
from homework.utils.errors import make_printable
from homework.utils.io import atomic_write, write_json

from .grader import Grade
from .ledger import printable_path

MAX_REASON_CHARS = 500
MAX_NAME_CHARS = 60  # in a table
MAX_FILE_NAME_BYTES = 200
PARTS = ("vlm", "clip")
JSON_FIELDS = ("points", "reason", "unanswered", "parameters", "seconds", "load_seconds", "answer_seconds")
GRADESCOPE_FORMAT = {"output_format": "text", "visibility": "visible"}
# A spreadsheet evaluates cells that begin so. If it splits lines at semicolons, a cell may begin inside of another.
FORMULA = re.compile(r"(^|[,;|])([\s\"']*)(?=[=+\-@＝＋－＠])")


def to_json(grade: Grade) -> dict:
    """Return the report of a grade as JSON content, every answer included."""
    parts = {part.name: {name: getattr(part, name) for name in JSON_FIELDS} for part in grade.parts}
    for part in grade.parts:
        parts[part.name]["reason"] = make_printable(part.reason, MAX_REASON_CHARS)
        if part.result is not None:
            parts[part.name] |= part.result.to_json()
    refused = make_printable(grade.refused, MAX_REASON_CHARS)
    totals = {"total": grade.total, "possible": len(PARTS) * MAX_POINTS, "refused": refused}
    return {"bundle": printable_path(grade.bundle), **totals, "parts": parts}


def is_scored(report: dict) -> bool:
    """Return whether the bundle ran and each part has a score."""
    return not report["refused"] and all("accuracy" in part for part in report["parts"].values())


def format_grade(report: dict, note: str = "") -> str:
    """Return the text report of one bundle, with a note about the data beside its name."""
    lines = [report["bundle"] + note]
    if report["refused"]:
        lines += ["", f"refused: {report['refused']}"]
    for name, part in report["parts"].items():
        lines += ["", *_format_part(name, part)]
    return "\n".join([*lines, "", "total " + _format_points(report["total"], report["possible"])])


def _format_points(points: int, possible: int) -> str:
    return f"{points} of {possible} points" + (", extra credit included" if points > possible else "")


def _format_part(name: str, part: dict) -> list[str]:
    head = f"{name.upper():<5} {_format_points(part['points'], MAX_POINTS)}"
    if "accuracy" not in part:
        return [f"{head}: {part['reason']}", f"      {part['seconds']:.1f} s"]
    by_type, exact_by_type = part["accuracy_by_type"], part["exact_accuracy_by_type"]
    correct = sum(sample["is_correct"] for sample in part["samples"])
    times = f"loading {part['load_seconds']:.1f}, answers {part['answer_seconds']:.1f}"
    lines = [
        head,
        f"      accuracy     {part['accuracy']:.1%} ({correct} of {len(part['samples'])}), "
        f"exact match {part['exact_accuracy']:.1%}",
        *(
            f"        {kind:<10} {by_type[kind]:6.1%} of {count:<4} exact match {exact_by_type[kind]:6.1%}"
            for kind, count in sorted(part["num_by_type"].items())
        ),
        f"      time         {part['seconds']:.1f} s: {times}",
        f"      parameters   {part['parameters']:,}",
    ]
    if part["unanswered"]:
        lines.append(f"      unanswered   {part['unanswered']}, counted as wrong")
    return lines


def make_row(report: dict) -> dict:
    """Return the columns of a table; points and seconds are numbers."""
    parts = report["parts"]
    problems = [f"{name.upper()}: {part['reason']}" for name, part in parts.items() if part["reason"]]
    return {
        "bundle": Path(report["bundle"]).name,
        **{name: parts[name]["points"] if name in parts else 0 for name in PARTS},
        "total": report["total"],
        "seconds": sum(part["seconds"] for part in parts.values()),
        "problem": " | ".join(problems) or report["refused"],
    }


def format_table(rows: Sequence[dict]) -> str:
    """Return a text table with one line per bundle."""
    # a name's blanks cannot imitate columns
    names = [make_printable(" ".join(row["bundle"].split()), MAX_NAME_CHARS) for row in rows]
    width = max(map(len, names))
    lines = [f"{'bundle':<{width}} {'VLM':>6} {'CLIP':>6} {'total':>6} {'s':>6}"]
    for name, (_, *numbers, seconds, problem) in zip(names, (row.values() for row in rows), strict=True):
        points = " ".join(f"{number:6}" for number in numbers)
        lines.append(f"{name:<{width}} {points} {seconds:6.1f}  {problem}".rstrip())
    return "\n".join(lines)


def show(reports: Iterable[dict], rows: Sequence[dict], is_class: bool, note: str = "") -> None:
    """Print a table, or the text report of the only bundle; its refusal is an error on stderr.

    Args:
        note: what to say about the data in the title.
    """
    only = None if is_class else next(iter(reports))
    if only and only["refused"]:
        print(f"error: {only['bundle']}: {only['refused']}", file=sys.stderr)
    else:
        title = f"graded{note}\n" if note else ""
        print(format_grade(only, note) if only else title + format_table(rows))


def print_result(report: dict) -> None:
    """Print a bundle's points to stderr, above a progress bar."""
    points = "refused" if report["refused"] else f"{report['total']} points"
    tqdm.write(f"{Path(report['bundle']).name}: {points}", file=sys.stderr)


def write_reports(path: Path, reports: Iterable[dict]) -> None:
    """Write reports as a JSON list, atomically; no more than one of them is in memory."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        separator = "[\n"
        for report in reports:
            stream.write(separator + json.dumps(report, indent=1))
            separator = ",\n"
        stream.write("\n]\n")


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """Write the table as a CSV file with column names, atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([FORMULA.sub(r"\1'\2", cell) if isinstance(cell, str) else cell for cell in row.values()])


def write_feedback(folder: Path, report: dict, note: str = "") -> None:
    """Write what a student may read to `folder/BUNDLE.txt`: points, accuracies and reasons, without any answer."""
    name = Path(report["bundle"]).name
    file_name = name
    if len(name.encode()) > MAX_FILE_NAME_BYTES:
        file_name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    # as UTF-8 on disk, whatever the locale
    with atomic_write(folder / os.fsdecode(f"{file_name}.txt".encode())) as temporary:
        temporary.write_text(format_grade({**report, "bundle": name}, note) + "\n", encoding="utf-8")


def write_gradescope(path: Path, report: dict) -> None:
    """Write Gradescope's results.json (https://gradescope-autograders.readthedocs.io/en/latest/specs/)."""
    tests = []
    for name in PARTS:
        part = report["parts"].get(name)
        output = "\n".join(_format_part(name, part)) if part else f"refused: {report['refused']}"
        score = {"score": part["points"] if part else 0, "max_score": MAX_POINTS}
        tests.append(
            {"name": name.upper(), **score, "output": output, "output_format": "text", "visibility": "visible"}
        )
    seconds = round(make_row(report)["seconds"])
    output = (
        f"refused: {report['refused']}" if report["refused"] else _format_points(report["total"], report["possible"])
    )
    totals = {"score": report["total"], "execution_time": seconds, "output": output, "output_format": "text"}
    write_json(path, {**totals, "visibility": "visible", "stdout_visibility": "hidden", "tests": tests})
