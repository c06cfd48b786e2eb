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

COLORS = ("#3d8fd1", "#d07a22", "#3fa066", "#d65f5f", "#9a78c9")  # contrast of 3 with white and with the dark page
MARKERS = "osD^v"
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


def _draw_svg(name: str, draw: Callable[[Axes], None], width: float = 4.4, height: float = 2.9) -> str:
    """Return a drawing as a self-contained `<svg>`, labelled `name`, whose ids do not clash with another's.

    The default size, in inches, is legible on a phone.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure((width, height), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = UNUSED_SVG.sub("", text[text.index("<svg") :]).replace(TEXT_COLOR, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def _draw_series(axes: Axes, label: str, number: int, x: Sequence[float], y: Sequence[float], **options) -> None:
    """Draw points in the colour and with the marker of the series of this number."""
    style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "ms": 4.5, "lw": 1.2}
    axes.errorbar(x, y, label=label, capsize=2, **(style | options))


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=9)


def plot_accuracy(name: str, correct: Counter, total: Counter, series: Sequence[str], connect: bool = True) -> str:
    """Plot the accuracy of each series over the sorted groups, with 95 % intervals.

    Args:
        correct, total: numbers by (group, series), see `viewer.answers.count_correct`.
        connect: whether to draw lines between the groups, which makes sense if they have an order.
    """
    groups = sorted({group for group, _ in total})
    series = [label for label in series if any(total[group, label] for group in groups)]

    def draw(axes: Axes) -> None:
        for number, label in enumerate(series):
            present = [place for place, group in enumerate(groups) if total[group, label]]
            keys = [(groups[place], label) for place in present]
            shares = np.array([correct[key] / total[key] for key in keys])
            ends = np.transpose([wilson_interval(correct[key] / total[key], total[key]) for key in keys])
            errors = np.maximum(0, [shares - ends[0], ends[1] - shares])  # rounding may make them negative
            x = np.array(present) + 0.1 * (number - (len(series) - 1) / 2)  # separates overlapping intervals
            _draw_series(axes, label, number, x, 100 * shares, yerr=100 * errors, ls="-" if connect else "")
        axes.set_xticks(range(len(groups)), [group.strip() for group in groups])
        axes.set(ylim=(0, 101), xlim=(-0.5, len(groups) - 0.5), ylabel="% right")
        axes.grid(axis="y")
        _add_legend(axes)

    return _draw_svg(name, draw)


def plot_confusions(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Plot a confusion matrix: true answers by given answers, in percent of the row.

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
        axes.pcolormesh(
            np.eye(*matrix.shape), cmap=ListedColormap([COLORS[3], COLORS[2]]), alpha=np.sqrt(matrix)
        )  # shows rare confusions too
        for y, x in np.argwhere(matrix >= 0.05):
            place = {"ha": "center", "va": "center_baseline"}
            axes.text(x + 0.5, y + 0.5, f"{100 * matrix[y, x]:.0f}", fontsize=6.5, **place)
        axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90, fontsize=7.5)
        axes.set_yticks(np.arange(len(truths)) + 0.5, truths, fontsize=7.5)
        axes.tick_params(length=0)
        axes.set(ylim=(len(truths), 0), xlabel="answer", ylabel="truth")

    return _draw_svg(name, draw, 1.4 + 0.27 * len(names), 1.2 + 0.24 * len(truths))


def plot_training_curves(part: str, curve: Sequence[dict]) -> list[tuple[str, str]]:
    """Plot training loss and validation accuracy over the steps, as (title, plot); one with a single point is left out.

    Args:
        curve: rows with `step` and `loss`, or `step` and `eval_accuracy...`.
    """
    accuracies = {f"eval_accuracy_{type_}": type_ for type_ in QUESTION_TYPES} | {"eval_accuracy": "all"}
    plots = []
    for title, fields in {"training loss": {"loss": "all"}, "% right while training": accuracies}.items():
        lines = {label: [(row["step"], row[field]) for row in curve if field in row] for field, label in fields.items()}

        def draw(axes: Axes, lines=lines) -> None:
            for number, (label, points) in enumerate(lines.items()):
                if points:
                    is_all = {"color": "gray", "lw": 2} if label == "all" else {}
                    _draw_series(axes, label, number, *zip(*points, strict=True), **is_all)
            axes.set(xlabel="step", ylim=(0, None) if len(lines) == 1 else (0, 101))
            if len(lines) > 1:
                _add_legend(axes)
            axes.grid()

        if max(map(len, lines.values())) > 1:
            plots.append((f"{part}: {title}", _draw_svg(f"{part}: {title}", draw)))
    return plots
