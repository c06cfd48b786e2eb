"""Format grades as text, a table, JSON and CSV."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from homework.data import BenchmarkResult
from homework.utils.io import atomic_write

from .grader import Grade
from .runner import make_printable
from .score import MAX_POINTS, PartGrade

FORMULA_PREFIXES = ("=", "+", "-", "@")  # a spreadsheet evaluates cells that begin with one of these
JSON_FIELDS = ("points", "reason", "unanswered", "parameters", "seconds", "load_seconds", "answer_seconds")


def format_grade(grade: Grade) -> str:
    """Return the text report of one bundle."""
    lines = [str(grade.bundle)]
    for part in grade.parts:
        lines += ["", *_format_part(part)]
    return "\n".join([*lines, "", "total " + _format_points(grade.total, MAX_POINTS * len(grade.parts))])


def _format_points(points: int, possible: int) -> str:
    return f"{points} of {possible} points" + (", extra credit included" if points > possible else "")


def _format_part(part: PartGrade) -> list[str]:
    head = f"{part.name.upper():<5} {_format_points(part.points, MAX_POINTS)}"
    if part.result is None:
        return [f"{head}: {part.reason}", f"      {part.seconds:.1f} s"]
    by_type, exact_by_type = part.result.accuracy_by_type, part.result.exact_accuracy_by_type
    lines = [
        head,
        f"      accuracy     {_format_accuracy(part.result)}, exact match {part.result.exact_accuracy:.1%}",
        *(
            f"        {name:<10} {by_type[name]:6.1%} of {count:<4} exact match {exact_by_type[name]:6.1%}"
            for name, count in sorted(part.result.num_by_type.items())
        ),
        f"      time         {part.seconds:.1f} s: loading {part.load_seconds:.1f}, answers {part.answer_seconds:.1f}",
        f"      parameters   {part.parameters:,}",
    ]
    if part.unanswered:
        lines.append(f"      unanswered   {part.unanswered}, counted as wrong")
    return lines


def _format_accuracy(result: BenchmarkResult) -> str:
    correct = sum(sample.is_correct for sample in result.samples)
    return f"{result.accuracy:.1%} ({correct} of {len(result.samples)})"


def to_json(grade: Grade) -> dict:
    """Return the report as JSON content, every answer included."""
    parts = {part.name: {name: getattr(part, name) for name in JSON_FIELDS} for part in grade.parts}
    for part in grade.parts:
        if part.result is not None:
            parts[part.name] |= part.result.to_json()
    totals = {"total": grade.total, "possible": 2 * MAX_POINTS, "refused": grade.refused}
    return {"bundle": str(grade.bundle), **totals, "parts": parts}


def _make_row(grade: Grade) -> dict:
    """Return the columns of a table; points and seconds are numbers."""
    points = {part.name: part.points for part in grade.parts}
    problems = [f"{part.name.upper()}: {part.reason}" for part in grade.parts if part.reason]
    return {
        "bundle": make_printable(grade.bundle.name),
        **{"vlm": 0, "clip": 0, **points, "total": grade.total},
        "seconds": sum(part.seconds for part in grade.parts),
        "problem": " | ".join(problems) or make_printable(grade.refused),
    }


def format_table(grades: Sequence[Grade]) -> str:
    """Return a text table with one line per bundle."""
    rows = [_make_row(grade).values() for grade in grades]
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'bundle':<{width}} {'VLM':>6} {'CLIP':>6} {'total':>6} {'s':>6}"]
    for name, *numbers, seconds, problem in rows:
        points = " ".join(f"{number:6}" for number in numbers)
        lines.append(f"{name:<{width}} {points} {seconds:6.1f}  {problem}".rstrip())
    return "\n".join(lines)


def print_result(grade: Grade) -> None:
    """Print a bundle's points to stderr, above a progress bar."""
    points = "refused" if grade.refused else f"{grade.total} points"
    tqdm.write(f"{make_printable(grade.bundle.name)}: {points}", file=sys.stderr)


def write_csv(path: Path, grades: Sequence[Grade]) -> None:
    """Write the table as a CSV file with column names, atomically."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.writer(stream)
        rows = [_make_row(grade) for grade in grades]
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([f"'{cell}" if str(cell).startswith(FORMULA_PREFIXES) else cell for cell in row.values()])
