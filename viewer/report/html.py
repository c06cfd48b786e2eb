"""Render a report as one HTML file without scripts or external resources."""

import base64
import io
from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from homework.data import BenchmarkResult, score_answers, wilson_interval
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import parse_image_file
from homework.labels.scene import VIEW_SIZE
from homework.labels.visualize import ROLE_COLORS, boxes_for_drawing
from homework.utils.images import open_image

from .. import error_analysis
from ..error_analysis import AnsweredQuestion, consistency, count_correct, group_by_image
from .collect import ReportData, suspected_label_errors, top_errors
from .plots import plot_accuracy_by_group, plot_confusions, plot_training_curves

STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
NUM_ERRORS, NUM_LABEL_ERRORS = 24, 12  # cards
MAX_IMAGE_SIZE = (300, 200)  # pixels of a card's image


def render_page(data: ReportData) -> str:
    """Render the whole page."""
    name, split = escape(data.models["VLM"].name), escape(data.split)
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


def _percent(*shares: float) -> str:
    return " – ".join(f"{round(100 * share, 1) + 0:.1f}" for share in shares)  # + 0 turns -0.0 into 0.0


def _render_accuracy(data: ReportData) -> str:
    rows = [{"image_path": "", "question": row.question, "answer": row.truth} for row in data.official]
    vlm = score_answers(rows, [row.answer for row in data.official])
    html = _render_result("VLM", "Accuracy of the VLM by question type", vlm)
    if data.clip_samples:
        clip = BenchmarkResult(data.clip_samples)
        html += _render_result("CLIP, one of five captions", "Accuracy of CLIP by caption type", clip)
    return html


def _render_result(model: str, title: str, result: BenchmarkResult) -> str:
    prefix, exact, number = result.accuracy_by_type, result.exact_accuracy_by_type, len(result.samples)
    rows = [
        (name, _percent(prefix[name]), _percent(exact[name]), _percent(*wilson_interval(prefix[name], n)), f"{n:,}")
        for name, n in sorted(result.num_by_type.items(), key=lambda pair: QUESTION_TYPES.index(pair[0]))
    ]
    macro = result.macro_accuracy, sum(exact.values()) / len(exact)
    rows.append(("macro average", *map(_percent, macro), _percent(*result.macro_interval), f"{number:,}"))
    micro, interval = (result.accuracy, result.exact_accuracy), wilson_interval(result.accuracy, number)
    rows.append(("all questions", *map(_percent, micro), _percent(*interval), f"{number:,}"))
    table = _table((model, "% prefix match", "% exact match", "95 % interval", "questions"), rows)
    total = Counter((sample.question_type, sample.question_type) for sample in result.samples)
    correct = Counter((sample.question_type, sample.question_type) for sample in result.samples if sample.is_exact)
    return _columns(table, _figure(plot_accuracy_by_group(title, correct, total)))


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
        rows = [answer for answer in data.official if answer.question_type == question_type]
        pairs = [(row.truth.lower(), row.answer.strip().lower()) for row in rows]
        if pairs:
            name = f"Confusion matrix: {title}"
            figures.append(_figure(plot_confusions(name, pairs), f"{name}, in percent of the row; correct is green"))
    return _columns(*figures)


def _render_consistency(data: ReportData) -> str:
    rows = [
        (name, _percent(passed / total), f"{passed:,} of {total:,}")
        for name, (passed, total) in consistency(data.answers).items()
    ]
    text = "<p>Whether answers to different questions about one view agree with each other, correct or not.</p>"
    return text + _table(("check", "% consistent", "number"), rows)


def _render_curves(data: ReportData) -> str:
    figures = [
        _figure(plot, f"{part}: {model.name}")
        for part, model in data.models.items()
        for plot in plot_training_curves(part, model.curve)
    ]
    return _columns(*figures) if figures else "<p>The checkpoint folders contain no training.json.</p>"


def _render_errors(data: ReportData) -> str:
    text = (
        "<p>The wrong answers with the lowest probability of the truth, one per view; in brackets, the model's "
        "probability of each answer. Red box: ego kart; yellow: other karts; dotted: karts too small to count.</p>"
    )
    return text + _cards(_card(answer, data.data_dir) for answer in top_errors(data.answers, NUM_ERRORS))


def _render_label_errors(data: ReportData) -> str:
    text = (
        "<p>Labels that the model contradicts with high confidence. The accuracy below a card is the model's on "
        "questions of the same type that it answers with at least this confidence.</p>"
    )
    return text + _cards(
        _card(answer, data.data_dir, f"accuracy at this confidence: {_percent(share)} %")
        for answer, share in suspected_label_errors(data.answers, NUM_LABEL_ERRORS)
    )


def _cards(cards: Iterable[str]) -> str:
    return f'<div class="cards">{"".join(cards) or "<p>None: all answers are correct.</p>"}</div>'


def _card(answer: AnsweredQuestion, data_dir: Path, note: str = "") -> str:
    given, truth = escape(answer.answer) or "(empty)", escape(answer.truth)
    lines = [
        f'<p class="question">{escape(answer.question)}</p>',
        f'<p>answer: <span class="wrong">{given}</span> ({_percent(answer.p_answer)} %)</p>',
        f'<p>truth: <span class="truth">{truth}</span> ({_percent(answer.p_truth)} %)</p>',
        *(f'<p class="note">{escape(text)}</p>' for text in (note, answer.image) if text),
    ]
    return f"<article>{_draw_view(answer, data_dir)}{''.join(lines)}</article>"


def _draw_view(answer: AnsweredQuestion, data_dir: Path) -> str:
    """Return a view with its boxes as an SVG that embeds the image."""
    frame, view = parse_image_file(answer.image)
    boxes = boxes_for_drawing(read_frame_info(data_dir / f"{frame}_info.json"), view, answer.scene)
    picture = open_image(data_dir / answer.image)
    picture.thumbnail(MAX_IMAGE_SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    source = base64.b64encode(stream.getvalue()).decode()
    width, height = VIEW_SIZE
    size = f'width="{width}" height="{height}"'
    parts = [f'<image {size} preserveAspectRatio="none" href="data:image/jpeg;base64,{source}"/>']
    for box in boxes:
        x1, y1, x2, y2 = (round(value, 1) for value in box.corners)
        place = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}" stroke="{ROLE_COLORS[box.role]}"'
        parts.append(f'<rect class="{box.role}" {place}><title>{escape(box.name or "not a kart")}</title></rect>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(answer.image)}">{"".join(parts)}</svg>'


def _render_sizes(data: ReportData) -> str:
    rows = [
        (f"{part} {m.name}", f"{m.num_parameters:,}", f"{m.size_mb:.1f}", f"{m.questions_per_second:.0f}")
        for part, m in data.models.items()
    ]
    header = ("", "parameters", "MB of the checkpoint", "questions per second")
    return _table(header, rows) + "<p>Timed while this page was made, with all questions about a view batched.</p>"
