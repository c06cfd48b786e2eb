"""Grades -> the report, as text, as JSON, as a table and as CSV."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from homework.data import BenchmarkResult
from homework.utils.io import atomic_write

from .grader import Grade
from .runner import COURSE_SAMPLES, printable
from .score import EXTRA_POINTS, POINTS, Part

TITLES = {"vlm": "VLM", "clip": "CLIP"}
FORMULA = ("=", "+", "-", "@")  # what a cell begins with that a spreadsheet computes
COLUMNS = ("bundle", "vlm", "clip", "total", "seconds", "problem")


def text(grade: Grade) -> str:
    """The report for a screen."""
    lines = [f"{grade.bundle}"]
    for part in grade.parts:
        lines += ["", *_part_lines(part)]
    possible = POINTS * len(grade.parts)
    return "\n".join([*lines, "", f"total {grade.total:.1f} of {possible:.0f} points (extra credit counted)"])


def _part_lines(part: Part) -> list[str]:
    head = f"{TITLES[part.name]:<5} {part.points:.1f} of {POINTS:.0f} points"
    if part.result is None:
        return [f"{head}: {part.reason}", f"      {part.seconds:.1f} s"]
    lines = [
        f"{head}, extra credit {part.extra:.1f} of {EXTRA_POINTS:.0f}",
        f"      accuracy     {_accuracy(part.result)}, strict {part.result.exact_accuracy:.1%}",
        f"      the course's {_accuracy(part.course)}: its grader asks the first {COURSE_SAMPLES}",
        *_kind_lines(part.result),
        f"      time         {part.seconds:.1f} s: loading {part.load_seconds:.1f}, answers {part.answer_seconds:.1f}",
        f"      parameters   {part.parameters:,}",
    ]
    if part.unanswered:
        lines.append(f"      unanswered   {part.unanswered}, counted as wrong")
    return lines


def _accuracy(result: BenchmarkResult) -> str:
    right = sum(sample.is_correct for sample in result.samples)
    return f"{result.accuracy:.1%} ({right} of {len(result.samples)})"


def _kind_lines(result: BenchmarkResult) -> list[str]:
    accuracy_by_type, strict, counts = result.accuracy_by_type, result.exact_accuracy_by_type, result.num_by_type
    return [
        f"        {kind:<10} {accuracy_by_type[kind]:6.1%} of {counts[kind]:<4} strict {strict[kind]:6.1%}"
        for kind in sorted(counts)
    ]


def as_json(grade: Grade) -> dict:
    """The report for a file, every answer included."""
    return {
        "bundle": str(grade.bundle),
        "total": grade.total,
        "possible": POINTS * len(TITLES),
        "refused": grade.refused,
        "parts": {part.name: _part_json(part) for part in grade.parts},
    }


def _part_json(part: Part) -> dict:
    names = ("points", "extra", "reason", "unanswered", "parameters", "seconds", "load_seconds", "answer_seconds")
    content = {name: getattr(part, name) for name in names}
    if part.result is None:
        return content
    return content | {"course_accuracy": part.course.accuracy} | part.result.to_json()


def _row(grade: Grade) -> tuple:
    """A value for each of `COLUMNS`; points and seconds are numbers."""
    points = {part.name: part.points + part.extra for part in grade.parts}
    reasons = [f"{TITLES[part.name]}: {part.reason}" for part in grade.parts if part.reason]
    seconds = sum(part.seconds for part in grade.parts)
    problem = " | ".join(reasons) or printable(grade.refused)
    return (
        printable(grade.bundle.name),
        points.get("vlm", 0.0),
        points.get("clip", 0.0),
        grade.total,
        seconds,
        problem,
    )


def table(grades: Sequence[Grade]) -> str:
    """A line a bundle, for a screen."""
    rows = [_row(grade) for grade in grades]
    width = max(len(row[0]) for row in rows)
    lines = [f"{'bundle':<{width}} {'VLM':>6} {'CLIP':>6} {'total':>6} {'s':>6}"]
    for name, vlm, clip, total, seconds, problem in rows:
        numbers = f"{vlm:6.1f} {clip:6.1f} {total:6.1f} {seconds:6.1f}"
        lines.append(f"{name:<{width}} {numbers}{'  ' if problem else ''}{problem}")
    return "\n".join(lines)


def print_progress(grade: Grade) -> None:
    """A line on stderr, as each bundle is done."""
    tqdm.write(  # so that a bar stays below
        f"{printable(grade.bundle.name)}: {'refused' if grade.refused else f'{grade.total:.1f} points'}",
        file=sys.stderr,
    )


def write_csv(path: Path, grades: Sequence[Grade]) -> None:
    """The table as a file, with a line of column names. Whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for row in map(_row, grades):
            writer.writerow([f"'{cell}" if str(cell).startswith(FORMULA) else cell for cell in row])
