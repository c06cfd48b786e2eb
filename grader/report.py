"""Parts -> the report, as text and as JSON."""

from collections.abc import Sequence
from pathlib import Path

from homework.data import BenchmarkResult

from .run import COURSE_SAMPLES
from .score import EXTRA_POINTS, POINTS, Part

TITLES = {"vlm": "VLM", "clip": "CLIP"}


def total(parts: Sequence[Part]) -> float:
    """Points of all parts with their extra credit."""
    return sum(part.points + part.extra for part in parts)


def text(bundle: Path, parts: Sequence[Part]) -> str:
    """The report for a screen."""
    lines = [f"{bundle}"]
    for part in parts:
        lines += ["", *_part_lines(part)]
    possible = POINTS * len(parts)
    return "\n".join([*lines, "", f"total {total(parts):.1f} of {possible:.0f} points (extra credit counted)"])


def _part_lines(part: Part) -> list[str]:
    head = f"{TITLES[part.name]:<5} {part.points:.1f} of {POINTS:.0f} points"
    if part.result is None:
        return [f"{head}: {part.reason}", f"      {part.seconds:.1f} s"]
    lines = [
        f"{head}, extra credit {part.extra:.1f} of {EXTRA_POINTS:.0f}",
        f"      accuracy     {_accuracy(part.result)}, strict {part.result.strict_accuracy:.1%}",
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
    by_kind, strict, counts = result.by_kind, result.strict_by_kind, result.counts
    return [
        f"        {kind:<10} {by_kind[kind]:6.1%} of {counts[kind]:<4} strict {strict[kind]:6.1%}"
        for kind in sorted(counts)
    ]


def as_json(bundle: Path, parts: Sequence[Part]) -> dict:
    """The report for a file, every answer included."""
    return {
        "bundle": str(bundle),
        "total": total(parts),
        "possible": POINTS * len(parts),
        "parts": {part.name: _part_json(part) for part in parts},
    }


def _part_json(part: Part) -> dict:
    names = ("points", "extra", "reason", "unanswered", "parameters", "seconds", "load_seconds", "answer_seconds")
    content = {name: getattr(part, name) for name in names}
    if part.result is None:
        return content
    return content | {"course_accuracy": part.course.accuracy} | part.result.to_json()
