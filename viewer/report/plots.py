"""Draw a report's plots: matplotlib SVGs to embed in a page, legible on white and on black."""

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from homework.data import wilson_interval
from homework.labels.questions import QUESTION_TYPES

# Of medium lightness, so that they contrast with white and black.
TYPE_COLORS = {"ego": "#3b82f6", "total": "#d97706", "track": "#16a34a", "relation": "#a855f7", "count": "#e11d48"}
CORRECT, WRONG, GRAY = "#16a34a", "#e11d48", "#888888"
TEXT_COLOR = "#010203"  # placeholder for the page's text colour, which CSS decides
STYLE = {
    "svg.fonttype": "none",  # keeps text as text: small and searchable
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a name may contain a $
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT_COLOR),
    "axes.spines.top": False,
    "axes.spines.right": False,
}
UNUSED_SVG = re.compile(
    r"<metadata>.*?</metadata>|<!--.*?-->"
    r'| xmlns(:\w+)?="[^"]*"| version="[^"]*"| id="(?:figure|axes|text|line2d|patch|xtick|ytick)[^"]*"',
    re.DOTALL,
)
MAX_CLASSES = 30  # columns of a confusion matrix; all other answers share one more
CLASS_NAME = re.compile(r"[a-zA-Z0-9_ -]{1,24}")  # an untrained model's answers may be anything, at any length


def _draw_svg(name: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Return a drawing as a self-contained `<svg>`, labelled `name`, whose ids do not clash with another's."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure((width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = UNUSED_SVG.sub("", text[text.index("<svg") :])
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 sans-serif", text).replace(TEXT_COLOR, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def _percent_with_interval(counts: Sequence[tuple[int, int]]) -> tuple[list[float], list[list[float]]]:
    """Return the percentages of (correct, total) pairs and their 95 % error bars below and above."""
    shares = [correct / total for correct, total in counts]
    ends = [wilson_interval(share, total) for share, (_, total) in zip(shares, counts, strict=True)]
    errors = [(max(0.0, share - low), max(0.0, high - share)) for share, (low, high) in zip(shares, ends, strict=True)]
    return [100 * share for share in shares], [[100 * error for error in side] for side in zip(*errors, strict=True)]


def _add_legend(axes: Axes, num_columns: int) -> None:
    axes.legend(frameon=False, ncols=num_columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)


def plot_accuracy_by_group(name: str, correct: Counter, total: Counter) -> str:
    """Plot one line per question type over the sorted groups, with 95 % intervals.

    Args:
        correct, total: numbers by (group, question type), see `viewer.error_analysis.count_correct`.
    """
    groups = sorted({group for group, _ in total})
    types = [type_ for type_ in QUESTION_TYPES if any(total[group, type_] for group in groups)]

    def draw(axes: Axes) -> None:
        for number, type_ in enumerate(types):
            present = [place for place, group in enumerate(groups) if total[group, type_]]
            keys = [(groups[place], type_) for place in present]
            percent, errors = _percent_with_interval([(correct[key], total[key]) for key in keys])
            offset = 0.08 * (number - (len(types) - 1) / 2)  # separates overlapping intervals
            style = {"fmt": "o-", "ms": 4, "lw": 1.2, "capsize": 2, "color": TYPE_COLORS.get(type_, GRAY)}
            axes.errorbar([place + offset for place in present], percent, yerr=errors, label=type_, **style)
        axes.set_xticks(range(len(groups)), [group.strip() for group in groups])
        axes.set(ylim=(0, 101), ylabel="accuracy, %")
        axes.grid(axis="y", color=GRAY, alpha=0.3)
        _add_legend(axes, len(types))

    return _draw_svg(name, 5.2, 3.0, draw)


def plot_confusions(name: str, counts: Mapping[str, Counter]) -> str:
    """Plot a confusion matrix, true answers by given answers; opacity is the share of the row.

    Args:
        counts: true answer -> number of times each answer was given.
    """
    truths = sorted(counts)
    given = sum(counts.values(), Counter())
    others = [answer for answer, _ in given.most_common() if answer not in counts and CLASS_NAME.fullmatch(answer)]
    columns = truths + sorted(others[: max(0, MAX_CLASSES - len(truths))])
    rest = [answer for answer in given if answer not in columns]
    names = columns + (["others"] if rest else [])

    def draw(axes: Axes) -> None:
        for y, truth in enumerate(truths):
            row = counts[truth]
            for x, answer in enumerate(names):
                number = row[answer] if x < len(columns) else sum(row[other] for other in rest)
                share, color = number / row.total(), CORRECT if answer == truth else WRONG
                if number:
                    axes.add_patch(Rectangle((x, y), 1, 1, color=color, alpha=max(0.05, share), lw=0))
                if share >= 0.05:
                    style = {"ha": "center", "va": "center_baseline", "fontsize": 6.5}
                    axes.text(x + 0.5, y + 0.5, f"{100 * share:.0f}", **style)
        axes.set_xticks([x + 0.5 for x in range(len(names))], names, rotation=90, fontsize=7.5)
        axes.set_yticks([y + 0.5 for y in range(len(truths))], truths, fontsize=7.5)
        axes.tick_params(length=0)
        axes.set(xlim=(0, len(names)), ylim=(len(truths), 0), xlabel="answer", ylabel="truth")

    return _draw_svg(name, 1.4 + 0.27 * len(names), 1.2 + 0.24 * len(truths), draw)


def plot_training_curves(name: str, curve: Sequence[dict]) -> list[str]:
    """Plot the training loss and the validation accuracy over the steps, each if it was logged.

    Args:
        curve: rows with `step` and `loss`, or `step` and `eval_accuracy...`.
    """
    accuracies = {f"eval_accuracy_{type_}": type_ for type_ in QUESTION_TYPES} | {"eval_accuracy": "all"}
    plots = []
    for title, fields, label in (("loss", {"loss": "all"}, "loss"), ("accuracy", accuracies, "accuracy, %")):
        lines = {name: [(row["step"], row[field]) for row in curve if field in row] for field, name in fields.items()}
        lines = {name: points for name, points in lines.items() if points}

        def draw(axes: Axes, title=title, label=label, lines=lines) -> None:
            for line, points in lines.items():
                style = {"ms": 3, "lw": 2 if line == "all" else 1, "color": TYPE_COLORS.get(line, GRAY)}
                axes.plot(*zip(*points, strict=True), "o-", label=line, **style)
            if title == "loss" and all(value > 0 for _, value in lines["all"]):
                axes.set_yscale("log")
                # the default labels are formulas, which `text.parse_math` leaves unrendered
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel="step", ylabel=label)
            axes.grid(color=GRAY, alpha=0.3)
            if len(lines) > 1:
                _add_legend(axes, len(lines))

        if lines:
            plots.append(_draw_svg(f"{name}, {title}", 5.2, 2.6, draw))
    return plots
