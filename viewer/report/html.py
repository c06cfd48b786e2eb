"""The report as HTML: one file, no scripts, nothing from elsewhere."""

import base64
import io
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from PIL import Image

from homework.clip import score
from homework.data import wilson_interval
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import parse_image_file
from homework.labels.scene import VIEW_SIZE, build_scene
from homework.labels.visualize import COLOURS, boxes_for_drawing
from homework.utils.images import open_image

from ..error_analysis import agreement, by_number, by_pair, by_side, said_for, tally
from .collect import Answer, Measured, Model, doubtful_labels, most_wrong
from .plots import COLOURS as KIND_COLOURS
from .plots import confusion_plot, curve_plots, group_plot, share_plot

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
WRONG, DOUBTFUL = 24, 12  # cards
MOST_PIXELS = (300, 200)  # of a card's picture


def page(measured: Measured) -> str:
    """The whole page."""
    vlm = measured.vlm
    intro = (
        f"<h1>What {escape(vlm.name)} sees</h1><p>Every question that can be asked about the {len(measured.views):,} "
        f"views of <b>{escape(measured.split)}</b>: {len(measured.answers):,} questions, {len(measured.official):,} of "
        "them such as the official set asks (no count of 0). Intervals are Wilson's 95 %, as if each question were "
        "drawn for itself; questions on one race hang together, so the true ones are wider.</p>"
    )
    parts = [
        intro,
        _section("Accuracy by kind", _accuracy(measured)),
        _section("What makes a question hard", _groups(measured)),
        _section("What is taken for what", _confusions(measured)),
        _section("Answers that agree", _agreement(measured)),
        _section("Training", _training(measured)),
        _section(f"The {WRONG} most wrong answers", _most_wrong(measured)),
        _section("Labels that may be wrong", _doubtful(measured)),
        _section("Speed and sizes", _sizes(measured)),
    ]
    title = f"{escape(vlm.name)} on {escape(measured.split)}"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    head = f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>\n"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(svg: str, caption: str = "") -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0:.1f}"  # + 0, as an interval may begin at -0.0


def _range(low: float, high: float) -> str:
    return f"{_percent(low)} – {_percent(high)}"


def _accuracy(measured: Measured) -> str:
    result = measured.result
    counts = result.num_by_type
    kinds = [kind for kind in QUESTION_TYPES if kind in counts]
    rows = [
        (
            kind,
            _percent(p),
            _percent(result.exact_accuracy_by_type[kind]),
            _range(*wilson_interval(p, counts[kind])),
            f"{counts[kind]:,}",
        )
        for kind, p in ((kind, result.accuracy_by_type[kind]) for kind in kinds)
    ]
    strict = sum(result.exact_accuracy_by_type.values()) / len(kinds)
    mean = _percent(result.macro_accuracy), _percent(strict), _range(*result.macro_interval)
    rows.append(("mean of the kinds", *mean, f"{len(result.samples):,}"))
    shares = {kind: (round(result.accuracy_by_type[kind] * counts[kind]), counts[kind]) for kind in kinds}
    table = _table(("VLM", "% right", "% word for word", "95 % interval", "questions"), rows)
    parts = [_pair(table, _figure(share_plot("Accuracy of the VLM by kind", shares, KIND_COLOURS)))]
    if measured.clip:
        right, asked = score([row for row, _ in measured.choices], [index for _, index in measured.choices])
        kinds = [kind for kind in QUESTION_TYPES if asked[kind]]
        shares = {kind: (right[kind], asked[kind]) for kind in kinds}
        total = {"all questions": (right.total(), asked.total())}
        rows = [
            (kind, _percent(hits / n), _range(*wilson_interval(hits / n, n)), f"{n:,}")
            for kind, (hits, n) in (shares | total).items()
        ]
        table = _table(("CLIP, one of five captions", "% right", "95 % interval", "questions"), rows)
        parts.append(_pair(table, _figure(share_plot("Accuracy of CLIP by kind", shares, KIND_COLOURS))))
    return "".join(parts)


def _pair(*parts: str) -> str:
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _groups(measured: Measured) -> str:
    groups: list[tuple[str, Callable]] = [
        ("By how many karts count in the view", by_number),
        ("By the shorter side of the kart's box that decides, in pixels of 150x100", by_side),
    ]
    if measured.pairs:
        groups.append(("By whether train shows this ego kart on this track", by_pair(measured.pairs)))
    return _pair(*(_figure(group_plot(name, *tally(measured.official, group)), name) for name, group in groups))


def _confusions(measured: Measured) -> str:
    titles = {"ego": "The ego kart", "track": "The track"}
    figures = []
    for kind, title in titles.items():
        said = said_for(measured.official, kind)
        if said:
            caption = f"{title}: what is said, in percent of the row; green is right"
            figures.append(_figure(confusion_plot(f"Confusion matrix: {title.lower()}", said), caption))
    return _pair(*figures)


def _agreement(measured: Measured) -> str:
    rows = [
        (name, _percent(held / number), f"{held:,} of {number:,}")
        for name, (held, number) in agreement(measured.views).items()
    ]
    text = "<p>Whether the answers to different questions on one view fit together, be they right or wrong.</p>"
    return text + _table(("", "% agree", "how often"), rows)


def _training(measured: Measured) -> str:
    figures = []
    for what, model in (("VLM", measured.vlm), ("CLIP", measured.clip)):
        for plot in curve_plots(what, model.curve) if model else ():
            figures.append(_figure(plot, f"{what}: {model.name}"))
    return _pair(*figures) if figures else "<p>The checkpoints' folders hold no training.json.</p>"


def _most_wrong(measured: Measured) -> str:
    text = (
        "<p>One a view, beginning with the truth that the model holds for least likely; in brackets, how likely it "
        "holds either answer. Red box: the ego kart; yellow: other karts; dotted: karts too small to count.</p>"
    )
    cards = [_card(one, measured.data) for one in most_wrong(measured.answers, WRONG)]
    return text + (f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>None: all answers are right.</p>")


def _doubtful(measured: Measured) -> str:
    text = (
        "<p>The model contradicts these labels and is sure of it. “Right where as sure” is how often it is right about "
        "this kind of question where it is at least as sure.</p>"
    )
    cards = [
        _card(one, measured.data, f"right where as sure: {_percent(share)} %")
        for one, share in doubtful_labels(measured.answers, DOUBTFUL)
    ]
    return text + (f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>None: all answers are right.</p>")


def _card(one: Answer, data: Path, note: str = "") -> str:
    """A view with its boxes, the question, the answer and the truth."""
    asked = one.asked
    lines = [
        f'<p class="asked">{escape(asked.question)}</p>',
        f'<p>said: <span class="wrong">{escape(asked.answer) or "(nothing)"}</span> ({_percent(one.own)} %)</p>',
        f'<p>truth: <span class="truth">{escape(asked.truth)}</span> ({_percent(one.true)} %)</p>',
        f'<p class="note">{escape(note)}</p>' if note else "",
        f'<p class="note">{escape(one.image)}</p>',
    ]
    return f"<article>{_picture(one.image, data)}{''.join(lines)}</article>"


def _picture(image: str, data: Path) -> str:
    """The view with its boxes as an SVG that holds the picture itself."""
    frame, view = parse_image_file(image)
    info = read_frame_info(data / f"{frame}_info.json")
    picture = open_image(data / image)
    picture.thumbnail(MOST_PIXELS, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    source = base64.b64encode(stream.getvalue()).decode()
    width, height = VIEW_SIZE
    size = f'width="{width}" height="{height}"'
    parts = [f'<image {size} preserveAspectRatio="none" href="data:image/jpeg;base64,{source}"/>']
    for box in boxes_for_drawing(info, view, build_scene(info, view)):
        x1, y1, x2, y2 = (round(value, 1) for value in box.corners)
        place = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" stroke="{COLOURS[box.role]}"'
        parts.append(f'<rect class="{box.role}" {place}><title>{escape(box.name or "no kart")}</title></rect>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(image)}">{"".join(parts)}</svg>'


def _sizes(measured: Measured) -> str:
    def row(what: str, model: Model, seconds: float) -> tuple[str, ...]:
        base = "from a hub" if model.base_megabytes is None else f"{model.base_megabytes:.1f}"
        counts = f"{model.parameters:,}", f"{model.adapter_parameters:,}"
        return f"{what} {model.name}", *counts, f"{model.megabytes:.1f}", base, f"{seconds:.4f}", f"{1 / seconds:.0f}"

    rows = [row("VLM", measured.vlm, measured.seconds)]
    if measured.clip:
        rows.append(row("CLIP", measured.clip, measured.choice_seconds))
    size = ("", "parameters", "of them LoRA's", "MB", "MB of the base", "seconds a question", "questions a second")
    return _table(size, rows) + "<p>Measured while this page was made, all questions of a view together.</p>"
