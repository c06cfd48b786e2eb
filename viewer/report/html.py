"""Render a report as one HTML file without scripts or external resources."""

import base64
import io
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from homework.clip import count_correct_by_type
from homework.data import score_answers, wilson_interval
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import parse_image_file
from homework.labels.scene import VIEW_SIZE, build_scene
from homework.labels.visualize import ROLE_COLORS, boxes_for_drawing
from homework.utils.images import open_image

from .. import error_analysis
from ..error_analysis import consistency, count_correct, group_by_image
from .collect import ModelSummary, ReportData, ScoredAnswer, suspected_label_errors, top_errors
from .plots import plot_accuracy_by_group, plot_confusions, plot_training_curves

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
NUM_ERRORS, NUM_LABEL_ERRORS = 24, 12  # cards
MAX_IMAGE_SIZE = (300, 200)  # pixels of a card's image


def render_page(data: ReportData) -> str:
    """Render the whole page."""
    name, split = escape(data.vlm.name), escape(data.split)
    intro = (
        f"<h1>{name}</h1><p>All questions about the {len(group_by_image(data.answers)):,} views of <b>{split}</b>: "
        f"{len(data.answers):,}, of which {len(data.official):,} occur in the official evaluation (no counts of 0). "
        "Intervals are Wilson's 95 % for independent questions; questions about one race are correlated, so the true "
        "intervals are wider.</p>"
    )
    sections = {
        "Accuracy by question type": _render_accuracy(data),
        "Accuracy by difficulty": _render_groups(data),
        "Confusion matrices": _render_confusions(data),
        "Consistency": _render_consistency(data),
        "Training curves": _render_curves(data),
        f"Top {NUM_ERRORS} errors": _render_errors(data),
        "Suspected label errors": _render_label_errors(data),
        "Size and speed": _render_sizes(data),
    }
    body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>\n" for title, content in sections.items())
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{name} on {split}</title><style>{STYLE}</style>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{intro}{body}</body></html>\n'


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(svg: str, caption: str = "") -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _columns(*parts: str) -> str:
    return f'<div class="columns">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def _percent(share: float) -> str:
    return f"{round(100 * share, 1) + 0:.1f}"  # + 0 turns -0.0 into 0.0


def _interval(share: float, number: int) -> str:
    return _range(*wilson_interval(share, number))


def _range(low: float, high: float) -> str:
    return f"{_percent(low)} – {_percent(high)}"


def _render_accuracy(data: ReportData) -> str:
    rows = [{"image_path": "", "question": row.question, "answer": row.truth} for row in data.official]
    result = score_answers(rows, [row.answer for row in data.official])
    prefix, exact = result.accuracy_by_type, result.exact_accuracy_by_type
    rows = [
        (name, _percent(prefix[name]), _percent(exact[name]), _interval(prefix[name], n), f"{n:,}")
        for name, n in sorted(result.num_by_type.items(), key=lambda pair: QUESTION_TYPES.index(pair[0]))
    ]
    macro = _percent(result.macro_accuracy), _percent(sum(exact.values()) / len(exact)), _range(*result.macro_interval)
    rows.append(("macro average", *macro, f"{len(result.samples):,}"))
    table = _table(("VLM", "% prefix match", "% exact match", "95 % interval", "questions"), rows)
    counts = count_correct(data.official, lambda answer: answer.question_type)
    html = _columns(table, _figure(plot_accuracy_by_group("Accuracy of the VLM by question type", *counts)))
    if data.clip:
        correct, total = count_correct_by_type(*zip(*data.clip_predictions, strict=True))
        types = [name for name in QUESTION_TYPES if total[name]]
        numbers = [(name, correct[name], total[name]) for name in types]
        numbers.append(("all questions", correct.total(), total.total()))
        rows = [(name, _percent(k / n), _interval(k / n, n), f"{n:,}") for name, k, n in numbers]
        table = _table(("CLIP, one of five captions", "% correct", "95 % interval", "questions"), rows)
        counts = [Counter({(name, name): count[name] for name in types}) for count in (correct, total)]
        html += _columns(table, _figure(plot_accuracy_by_group("Accuracy of CLIP by caption type", *counts)))
    return html


def _render_groups(data: ReportData) -> str:
    groups = {
        "Accuracy by number of karts in the view": error_analysis.group_by_num_karts,
        "Accuracy by short edge of the deciding kart's box, in pixels of 150x100": error_analysis.group_by_kart_size,
    }
    if data.training_pairs:
        title = "Accuracy by whether train has this ego kart on this track"
        groups[title] = error_analysis.group_by_training_pair(data.training_pairs)
    figures = [
        _figure(plot_accuracy_by_group(title, *count_correct(data.official, group)), title)
        for title, group in groups.items()
    ]
    return _columns(*figures)


def _render_confusions(data: ReportData) -> str:
    figures = []
    for question_type, title in {"ego": "ego kart", "track": "track"}.items():
        counts = error_analysis.confusion_counts(data.official, question_type)
        if counts:
            name = f"Confusion matrix: {title}"
            figures.append(_figure(plot_confusions(name, counts), f"{name}, in percent of the row; correct is green"))
    return _columns(*figures)


def _render_consistency(data: ReportData) -> str:
    rows = [
        (name, _percent(passed / total), f"{passed:,} of {total:,}")
        for name, (passed, total) in consistency(data.answers).items()
    ]
    text = "<p>Whether answers to different questions about one view agree with each other, correct or not.</p>"
    return text + _table(("check", "% consistent", "number"), rows)


def _render_curves(data: ReportData) -> str:
    models = {"VLM": data.vlm} | ({"CLIP": data.clip} if data.clip else {})
    figures = [
        _figure(plot, f"{part}: {model.name}")
        for part, model in models.items()
        for plot in plot_training_curves(part, model.curve)
    ]
    return _columns(*figures) if figures else "<p>The checkpoint folders contain no training.json.</p>"


def _render_errors(data: ReportData) -> str:
    text = (
        "<p>The wrong answers with the lowest probability of the truth, one per view; in brackets, the model's "
        "probability of each answer. Red box: ego kart; yellow: other karts; dotted: karts too small to count.</p>"
    )
    return text + _cards(data, [(answer, "") for answer in top_errors(data.answers, NUM_ERRORS)])


def _render_label_errors(data: ReportData) -> str:
    text = (
        "<p>Labels that the model contradicts with high confidence. The accuracy below a card is the model's on "
        "questions of the same type that it answers with at least this confidence.</p>"
    )
    found = suspected_label_errors(data.answers, NUM_LABEL_ERRORS)
    return text + _cards(data, [(row, f"accuracy at this confidence: {_percent(share)} %") for row, share in found])


def _cards(data: ReportData, notes: list[tuple[ScoredAnswer, str]]) -> str:
    cards = "".join(_card(answer, data.data_dir, note) for answer, note in notes)
    return f'<div class="cards">{cards}</div>' if cards else "<p>None: all answers are correct.</p>"


def _card(answer: ScoredAnswer, data_dir: Path, note: str) -> str:
    given, truth = escape(answer.answer) or "(empty)", escape(answer.truth)
    lines = [
        f'<p class="question">{escape(answer.question)}</p>',
        f'<p>answer: <span class="wrong">{given}</span> ({_percent(answer.p_answer)} %)</p>',
        f'<p>truth: <span class="truth">{truth}</span> ({_percent(answer.p_truth)} %)</p>',
        *(f'<p class="note">{escape(text)}</p>' for text in (note, answer.image) if text),
    ]
    return f"<article>{_draw_view(answer.image, data_dir)}{''.join(lines)}</article>"


def _draw_view(image: str, data_dir: Path) -> str:
    """Return a view with its boxes as an SVG that embeds the image."""
    frame, view = parse_image_file(image)
    info = read_frame_info(data_dir / f"{frame}_info.json")
    picture = open_image(data_dir / image)
    picture.thumbnail(MAX_IMAGE_SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    source = base64.b64encode(stream.getvalue()).decode()
    width, height = VIEW_SIZE
    size = f'width="{width}" height="{height}"'
    parts = [f'<image {size} preserveAspectRatio="none" href="data:image/jpeg;base64,{source}"/>']
    for box in boxes_for_drawing(info, view, build_scene(info, view)):
        x1, y1, x2, y2 = (round(value, 1) for value in box.corners)
        place = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" stroke="{ROLE_COLORS[box.role]}"'
        parts.append(f'<rect class="{box.role}" {place}><title>{escape(box.name or "not a kart")}</title></rect>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(image)}">{"".join(parts)}</svg>'


def _render_sizes(data: ReportData) -> str:
    def row(part: str, model: ModelSummary) -> tuple[str, ...]:
        base = "from a hub" if model.base_size_mb is None else f"{model.base_size_mb:.1f}"
        counts, seconds = (f"{model.num_parameters:,}", f"{model.num_lora_parameters:,}"), model.seconds_per_question
        return f"{part} {model.name}", *counts, f"{model.size_mb:.1f}", base, f"{seconds:.4f}", f"{1 / seconds:.0f}"

    rows = [row("VLM", data.vlm)] + ([row("CLIP", data.clip)] if data.clip else [])
    header = (
        "",
        "parameters",
        "LoRA parameters",
        "MB",
        "MB of the base",
        "seconds per question",
        "questions per second",
    )
    return _table(header, rows) + "<p>Timed while this page was made, with all questions about a view batched.</p>"
