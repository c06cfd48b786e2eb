"""Render a report as one HTML file without scripts or external resources, by the template page.html."""

import base64
import io
from collections import Counter
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from homework.data import BenchmarkResult, score_answers, wilson_interval
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import parse_image_file
from homework.labels.scene import VIEW_SIZE
from homework.labels.visualize import ROLE_COLORS, LabeledBox, boxes_for_drawing
from homework.utils.images import open_image

from .. import error_analysis
from ..error_analysis import AnsweredQuestion, consistency, count_correct, group_by_image
from .collect import ReportData, suspected_label_errors, top_errors
from .plots import plot_accuracy_by_group, plot_confusions, plot_training_curves

HERE = Path(__file__).parent
NUM_ERRORS, NUM_LABEL_ERRORS = 24, 12  # cards
MAX_IMAGE_SIZE = (300, 200)  # pixels of a card's image


def render_page(data: ReportData) -> str:
    """Render the whole page."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": _percent, "thousands": "{:,}".format}
    return environment.get_template("page.html").render(
        data=data,
        name=data.models["VLM"].name,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        num_views=len(group_by_image(data.answers)),
        accuracies=_compare_accuracies(data),
        groups=_plot_groups(data),
        confusions=_plot_confusions(data),
        consistency_rows=[
            (name, _percent(passed / total), f"{passed:,} of {total:,}")
            for name, (passed, total) in consistency(data.answers).items()
        ],
        curves=[
            (f"{part}: {model.name}", svg)
            for part, model in data.models.items()
            for svg in plot_training_curves(part, model.curve)
        ],
        num_errors=NUM_ERRORS,
        errors=top_errors(data.answers, NUM_ERRORS),
        label_errors=suspected_label_errors(data.answers, NUM_LABEL_ERRORS),
        sizes=[
            (f"{part} {m.name}", f"{m.num_parameters:,}", f"{m.size_mb:.1f}", f"{m.questions_per_second:.0f}")
            for part, m in data.models.items()
        ],
        view_size=VIEW_SIZE,
        colors=ROLE_COLORS,
        image_url=lambda answer: _image_url(data.data_dir / answer.image),
        boxes=lambda answer: _list_boxes(answer, data.data_dir),
    )


def _percent(*shares: float) -> str:
    return " – ".join(f"{100 * share:z.1f}" for share in shares)  # z: no -0.0


def _compare_accuracies(data: ReportData) -> list[tuple]:
    """Return (model, rows of its table, plot) of each model."""
    rows = [{"image_path": "", "question": row.question, "answer": row.truth} for row in data.official]
    vlm = score_answers(rows, [row.answer for row in data.official])
    results = [("VLM", "Accuracy of the VLM by question type", vlm)]
    if data.clip_samples:
        clip = BenchmarkResult(data.clip_samples)
        results.append(("CLIP, one of five captions", "Accuracy of CLIP by caption type", clip))
    return [(part, _list_accuracies(result), _plot_result(title, result)) for part, title, result in results]


def _list_accuracies(result: BenchmarkResult) -> list[tuple[str, ...]]:
    prefix, exact, number = result.accuracy_by_type, result.exact_accuracy_by_type, len(result.samples)
    rows = [
        (name, prefix[name], exact[name], wilson_interval(prefix[name], n), n)
        for name, n in sorted(result.num_by_type.items(), key=lambda pair: QUESTION_TYPES.index(pair[0]))
    ]
    macro_exact = sum(exact.values()) / len(exact)
    micro_interval = wilson_interval(result.accuracy, number)
    rows.append(("macro average", result.macro_accuracy, macro_exact, result.macro_interval, number))
    rows.append(("all questions", result.accuracy, result.exact_accuracy, micro_interval, number))
    return [(name, _percent(p), _percent(e), _percent(*interval), f"{n:,}") for name, p, e, interval, n in rows]


def _plot_result(title: str, result: BenchmarkResult) -> str:
    total = Counter((sample.question_type, sample.question_type) for sample in result.samples)
    correct = Counter((sample.question_type, sample.question_type) for sample in result.samples if sample.is_exact)
    return plot_accuracy_by_group(title, correct, total)


def _plot_groups(data: ReportData) -> list[tuple[str, str]]:
    groups = {
        "Accuracy by number of karts in the view": error_analysis.group_by_num_karts,
        "Accuracy by short edge of the deciding kart's box, in pixels of 150x100": error_analysis.group_by_kart_size,
    }
    if data.training_pairs:
        title = "Accuracy by whether train has this ego kart on this track"
        groups[title] = error_analysis.group_by_training_pair(data.training_pairs)
    counts = {title: count_correct(data.official, group) for title, group in groups.items()}
    return [(title, plot_accuracy_by_group(title, *numbers)) for title, numbers in counts.items()]


def _plot_confusions(data: ReportData) -> list[tuple[str, str]]:
    plots = []
    for question_type, title in {"ego": "Confusion matrix: ego kart", "track": "Confusion matrix: track"}.items():
        rows = [answer for answer in data.official if answer.question_type == question_type]
        if rows:
            pairs = [(row.truth.lower(), row.answer.strip().lower()) for row in rows]
            plots.append((title, plot_confusions(title, pairs)))
    return plots


def _image_url(path: Path) -> str:
    """Return a reduced image as a data URL."""
    picture = open_image(path)
    picture.thumbnail(MAX_IMAGE_SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _list_boxes(answer: AnsweredQuestion, data_dir: Path) -> list[LabeledBox]:
    frame, view = parse_image_file(answer.image)
    return boxes_for_drawing(read_frame_info(data_dir / f"{frame}_info.json"), view, answer.scene)
