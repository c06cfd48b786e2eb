"""The report's plots: matplotlib's SVG, made to stand in a page and to be read on white and on black."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from homework.data import wilson_interval
from homework.labels.questions import QUESTION_TYPES

# Of middle lightness, so that they stand out from white and from black.
COLOURS = {"ego": "#3b82f6", "total": "#d97706", "track": "#16a34a", "relation": "#a855f7", "count": "#e11d48"}
INK = "#010203"  # stands for the page's own colour of text, which is not known here
STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and searchable
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a name may hold a $
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MOST_CLASSES = 30  # in a confusion matrix; whatever else is said is one column
NAME = re.compile(r"[a-zA-Z0-9_ -]{1,24}")  # an untrained model says anything, and at any length


def _figure(width: float, height: float) -> tuple[Figure, "matplotlib.axes.Axes"]:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` that needs nothing from elsewhere and shares no name with another one.

    Args:
        name: what a reader who can't see it is told.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(
        r' xmlns(:\w+)?="[^"]*"| version="[^"]*"| id="(?:figure|axes|text|line2d|patch|xtick|ytick)[^"]*"', "", text
    )
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 sans-serif", text).replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{name}"', 1)


def share_plot(name: str, groups: Mapping[str, tuple[int, int]], colours: Mapping[str, str]) -> str:
    """A dot a group at the percentage that is right, with its 95 % interval.

    Args:
        groups: name -> (right, asked).
        colours: those of the groups that have one.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 0.6 + 0.32 * len(groups))
        for place, (group, (right, asked)) in enumerate(groups.items()):
            share, (low, high) = right / asked, wilson_interval(right / asked, asked)
            errors = [[100 * (share - low)], [100 * (high - share)]]
            axes.errorbar(100 * share, -place, xerr=errors, fmt="o", capsize=3, color=colours.get(group, "#888888"))
        axes.set_yticks([-place for place in range(len(groups))], list(groups))
        axes.set_xlim(0, 101)
        axes.set_xlabel("percent right")
        axes.grid(axis="x", color="#888888", alpha=0.3)
    return _svg(figure, name)


def group_plot(name: str, right: Counter, asked: Counter) -> str:
    """A line a kind over the groups, in their order, with 95 % intervals.

    Args:
        right, asked: by (group, kind), as `viewer.error_analysis.tally` gives them.
    """
    groups = sorted({group for group, _ in asked})
    kinds = [kind for kind in QUESTION_TYPES if any((group, kind) in asked for group in groups)]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(5.2, 3.0)
        for number, kind in enumerate(kinds):
            there = [place for place, group in enumerate(groups) if asked[group, kind]]
            shares = [right[groups[place], kind] / asked[groups[place], kind] for place in there]
            ends = [wilson_interval(share, asked[groups[at], kind]) for share, at in zip(shares, there, strict=True)]
            errors = [[max(0, 100 * (share - low)) for share, (low, _) in zip(shares, ends, strict=True)]]
            errors += [[max(0, 100 * (high - share)) for share, (_, high) in zip(shares, ends, strict=True)]]
            x = [
                place + 0.08 * (number - (len(kinds) - 1) / 2) for place in there
            ]  # so that intervals don't hide others
            y = [100 * share for share in shares]
            axes.errorbar(x, y, yerr=errors, fmt="o-", ms=4, lw=1.2, capsize=2, color=COLOURS[kind], label=kind)
        axes.set_xticks(range(len(groups)), [group.strip() for group in groups])
        axes.set_ylim(0, 101)
        axes.set_ylabel("percent right")
        axes.grid(axis="y", color="#888888", alpha=0.3)
        axes.legend(frameon=False, ncols=len(kinds), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return _svg(figure, name)


def confusion_plot(name: str, said: Mapping[str, Counter]) -> str:
    """A row a true answer, a column an answer; a cell is the darker, the larger its share of the row.

    Args:
        said: true answer -> how often each answer was given for it.
    """
    rows = sorted(said)
    given = Counter()
    for answers in said.values():
        given.update(answers)
    others = [answer for answer, _ in given.most_common() if answer not in said and NAME.fullmatch(answer)]
    columns = rows + sorted(others[: max(0, MOST_CLASSES - len(rows))])
    rest = [answer for answer in given if answer not in columns]
    names = columns + (["others"] if rest else [])
    side = 1.4 + 0.27 * len(names), 1.2 + 0.24 * len(rows)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(*side)
        for y, truth in enumerate(rows):
            counts = [said[truth][answer] for answer in columns] + [sum(said[truth][answer] for answer in rest)] * bool(
                rest
            )
            for x, count in enumerate(counts):
                share = count / said[truth].total()
                if count:
                    colour = COLOURS["track"] if names[x] == truth else COLOURS["count"]
                    axes.add_patch(
                        matplotlib.patches.Rectangle((x, y), 1, 1, color=colour, alpha=max(0.05, share), lw=0)
                    )
                if share >= 0.05:
                    text = f"{100 * share:.0f}"
                    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center_baseline", fontsize=6.5)
        axes.set_xlim(0, len(names))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([x + 0.5 for x in range(len(names))], names, rotation=90, fontsize=7.5)
        axes.set_yticks([y + 0.5 for y in range(len(rows))], rows, fontsize=7.5)
        axes.tick_params(length=0)
        axes.set_xlabel("answer")
        axes.set_ylabel("truth")
    return _svg(figure, name)


def curve_plots(name: str, curve: Sequence[dict]) -> list[str]:
    """The loss over the steps, and the percentages right on questions asked now and then; none of what wasn't logged.

    Args:
        curve: rows with `step` and `loss`, or `step` and numbers named `eval_accuracy...`.
    """
    kinds = {f"eval_accuracy_{kind}": kind for kind in QUESTION_TYPES} | {"eval_accuracy": "all"}
    plots = []
    for title, fields, label in (("loss", {"loss": "all"}, "loss"), ("score", kinds, "percent right")):
        lines = {field: [(row["step"], row[field]) for row in curve if field in row] for field in fields}
        lines = {field: points for field, points in lines.items() if points}
        if not lines:
            continue
        with matplotlib.rc_context(STYLE):
            figure, axes = _figure(5.2, 2.6)
            for field, points in lines.items():
                x, y = zip(*points, strict=True)
                ink = COLOURS.get(fields[field], "#888888")
                axes.plot(x, y, "o-", ms=3, lw=2 if fields[field] == "all" else 1, color=ink, label=fields[field])
            if title == "loss" and all(value > 0 for _, value in lines["loss"]):
                axes.set_yscale("log")
                # its own labels are formulas, which are not drawn as such here
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.grid(color="#888888", alpha=0.3)
            if len(lines) > 1:
                axes.legend(frameon=False, ncols=len(lines), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
        plots.append(_svg(figure, f"{name}, {title}"))
    return plots
