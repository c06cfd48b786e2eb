"""Draw a report's plots: matplotlib SVGs to embed in a page, legible on white and on black."""

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from homework.data import wilson_interval
from homework.labels.questions import QUESTION_TYPES

TEXT_COLOR = "#010203"  # placeholder for the page's text colour, which CSS decides
STYLE = {
    "svg.fonttype": "none",  # keeps text as text: small and searchable
    "font.size": 9,
    "text.parse_math": False,  # a name may contain a $
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), TEXT_COLOR),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#8888884d",
}
# The page needs no namespaces, and would have each of matplotlib's ids but those of clip paths several times.
UNUSED_SVG = re.compile(
    r'<metadata>.*?</metadata>| xmlns(:\w+)?="[^"]*"| id="(?:figure|axes|text|line2d|patch|xtick|ytick)[^"]*"',
    re.DOTALL,
)


def _draw_svg(name: str, width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """Return a drawing as a self-contained `<svg>`, labelled `name`, whose ids do not clash with another's."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure((width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = UNUSED_SVG.sub("", text[text.index("<svg") :]).replace(TEXT_COLOR, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def _draw_line(axes: Axes, label: str, x: Sequence[float], y: Sequence[float], errors=None) -> None:
    """Draw a line in the colour of its question type, or in gray; `errors` are lengths below and above."""
    color = f"C{QUESTION_TYPES.index(label)}" if label in QUESTION_TYPES else "gray"
    axes.errorbar(x, y, yerr=errors, fmt="o-", ms=3, lw=1.2, capsize=2, color=color, label=label)


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)


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
            shares = np.array([correct[key] / total[key] for key in keys])
            ends = np.transpose([wilson_interval(correct[key] / total[key], total[key]) for key in keys])
            errors = np.maximum(0, [shares - ends[0], ends[1] - shares])  # rounding may make them negative
            offset = 0.08 * (number - (len(types) - 1) / 2)  # separates overlapping intervals
            _draw_line(axes, type_, np.array(present) + offset, 100 * shares, 100 * errors)
        axes.set_xticks(range(len(groups)), [group.strip() for group in groups])
        axes.set(ylim=(0, 101), ylabel="accuracy, %")
        axes.grid(axis="y")
        _add_legend(axes)

    return _draw_svg(name, 5.2, 3.0, draw)


def plot_confusions(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Plot a confusion matrix: true answers by given answers, in percent of the row, which is also the opacity.

    Args:
        pairs: (true answer, given answer) of each question. What is never a true answer shares one column.
    """
    counts = Counter(pairs)
    truths = sorted({truth for truth, _ in counts})
    names = [*truths, "others"]
    matrix = np.zeros((len(truths), len(names)))
    for (truth, given), number in counts.items():
        matrix[truths.index(truth), names.index(given if given in truths else "others")] += number
    matrix /= matrix.sum(axis=1, keepdims=True)

    def draw(axes: Axes) -> None:
        axes.pcolormesh(np.eye(*matrix.shape), cmap=ListedColormap(["C3", "C2"]), alpha=matrix)
        for y, x in np.argwhere(matrix >= 0.05):
            place = {"ha": "center", "va": "center_baseline"}
            axes.text(x + 0.5, y + 0.5, f"{100 * matrix[y, x]:.0f}", fontsize=6.5, **place)
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=7.5)
        axes.set_yticks(np.arange(len(truths)) + 0.5, truths, fontsize=7.5)
        axes.tick_params(length=0)
        axes.set(ylim=(len(truths), 0), xlabel="answer", ylabel="truth")

    return _draw_svg(name, 1.4 + 0.27 * len(names), 1.2 + 0.24 * len(truths), draw)


def plot_training_curves(name: str, curve: Sequence[dict]) -> list[str]:
    """Plot the training loss and the validation accuracy over the steps, each if it was logged.

    Args:
        curve: rows with `step` and `loss`, or `step` and `eval_accuracy...`.
    """
    accuracies = {f"eval_accuracy_{type_}": type_ for type_ in QUESTION_TYPES} | {"eval_accuracy": "all"}
    plots = []
    for label, fields in ("loss", {"loss": "all"}), ("accuracy", accuracies):
        lines = {name: [(row["step"], row[field]) for row in curve if field in row] for field, name in fields.items()}

        def draw(axes: Axes, label=label, lines=lines) -> None:
            for line, points in lines.items():
                if points:
                    _draw_line(axes, line, *zip(*points, strict=True))
            if label == "loss":
                axes.set_yscale("log", subs=(2, 5))
                for set_formatter in axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter:
                    set_formatter("{x:g}")  # the default labels are formulas
            else:
                _add_legend(axes)
            axes.set(xlabel="step", ylabel="accuracy, %" if label == "accuracy" else label)
            axes.grid()

        if any(lines.values()):
            plots.append(_draw_svg(f"{name}, {label}", 5.2, 2.6, draw))
    return plots
