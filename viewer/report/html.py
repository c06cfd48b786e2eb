"""Render a report as one HTML file without external resources, by the template page.html."""

import base64
import io
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from homework.data import BenchmarkResult
from homework.labels.duplicates import MEAN
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import parse_image_file
from homework.labels.scene import VIEW_SIZE
from homework.labels.visualize import ROLE_COLORS, LabeledBox, boxes_for_drawing, place_names
from homework.utils.images import open_image

from .. import answers
from ..answers import AnsweredQuestion, consistency, count_correct, format_percent, mean_of_types, score
from ..causes import Cause, find_causes
from .collect import ReportData, suspected_label_errors, top_errors
from .headline import choose_examples, compare_scores, describe_origin, describe_scores, score_base, write_verdict
from .plots import plot_accuracy, plot_confusions, plot_training_curves

HERE = Path(__file__).parent
NUM_CARDS = 4  # per cause
NAME_HEIGHT = 1 / 20  # relative to the picture's width
MAX_IMAGE_SIZE = (600, 400)  # pixels of an embedded image
CROP_MARGIN = 2.5  # width of a crop relative to that of the box in it
MIN_CROP_PX, MAX_CROP_PX = 45, 90  # width in pixels of the view


class Window(NamedTuple):
    """A part of a view, in pixels of the 150x100 view."""

    x: float
    y: float
    width: float
    height: float


def render_page(data: ReportData) -> str:
    """Render the whole page."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.filters |= {"percent": _percent, "thousands": "{:,}".format}
    causes = find_causes(data.official, data.answers, data.data_dir)
    num_errors = sum(not answer.is_correct for answer in data.official)
    images: dict[str, tuple[str, str]] = {}  # (id, data URL) of each embedded image, filled while cards are rendered

    def use_image(answer: AnsweredQuestion) -> str:
        if answer.image not in images:
            images[answer.image] = f"view-{len(images)}", _image_url(data.data_dir / answer.image)
        return images[answer.image][0]

    @cache
    def boxes(answer: AnsweredQuestion) -> list[LabeledBox]:
        frame, view = parse_image_file(answer.image)
        found = boxes_for_drawing(read_frame_info(data.data_dir / f"{frame}_info.json"), view, answer.scene)
        return [box for box in found if box.role != "other"]

    def names(answer: AnsweredQuestion, window: Window) -> list[tuple[LabeledBox, str, float, float]]:
        x, y, width, height = window
        return place_names(boxes(answer), NAME_HEIGHT * width, (x, y, x + width, y + height))

    return environment.get_template("page.html").render(
        data=data,
        name=data.models["VLM"].name,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=(HERE / "report.js").read_text(encoding="utf-8"),
        verdict=write_verdict(data, causes),
        facts=[f"written {time.strftime('%Y-%m-%d %H:%M')}", *describe_origin(data)],
        panels=compare_scores(data),
        panel_note=describe_scores(data),
        examples=choose_examples(data, causes),
        accuracies=_list_accuracies(data),
        type_plots=_plot_types(data),
        groups=_plot_groups(data),
        num_errors=num_errors,
        cause_rows=[
            (
                cause.name,
                f"{len(cause.errors):,}",
                *map(_percent, (len(cause.errors) / max(1, num_errors), cause.error_rate, cause.other_error_rate)),
            )
            for cause in causes
        ],
        causes=_choose_cards(causes),
        label_errors=suspected_label_errors(data.answers, NUM_CARDS),
        consistency_rows=[
            (name, _percent(passed / total), f"{passed:,} of {total:,}")
            for name, (passed, total) in consistency(data.answers).items()
        ],
        confusions=_plot_confusions(data),
        curves=[
            plot
            for part, model in data.models.items()
            for plot in plot_training_curves(part, model.manifest.get("curve", []))
        ],
        sizes=_list_sizes(data),
        name_height=NAME_HEIGHT,
        view=Window(0, 0, *VIEW_SIZE),
        crop=crop_window,
        colors=ROLE_COLORS,
        images=images,
        use_image=use_image,
        boxes=boxes,
        names=names,
    )


def _percent(*shares: float) -> str:
    return " – ".join(map(format_percent, shares))


def _list_sizes(data: ReportData) -> list[tuple[str, ...]]:
    return [
        (
            f"{part} {model.name}",
            f"{model.num_parameters.total:,}",
            f"{model.num_parameters.without_embedding:,}",
            f"{model.num_parameters.adapter:,}",
            f"{model.size_mb:.1f}",
            f"{model.questions_per_second:.0f}",
        )
        for part, model in data.models.items()
    ]


def _list_accuracies(data: ReportData) -> list[tuple]:
    """Return (title, header, rows) of each model's table by type."""
    others = {"base": score_base(data).accuracy_by_type} if data.base_answers else {}
    vlm = score(data.official)
    others |= answers.score_guesses(data.official) | {"exact match": vlm.exact_accuracy_by_type}
    tables = [("VLM by question type, % right", *_list_rows(vlm, others))]
    if data.clip_samples:
        clip = BenchmarkResult(data.clip_samples)
        tables.append(("CLIP by caption type, % right of five", *_list_rows(clip, {})))
    return tables


def _list_rows(result: BenchmarkResult, others: dict[str, dict[str, float]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return (header, rows) of a table by type, with other models' accuracies beside the result's."""
    rows = [
        (name, n, share, result.by_moment[name], [by_type[name] for by_type in others.values()])
        for name, n in sorted(result.num_by_type.items(), key=lambda pair: QUESTION_TYPES.index(pair[0]))
        for share in [result.accuracy_by_type[name]]
    ]
    means = [mean_of_types(by_type) for by_type in others.values()]
    rows.append(("mean of types", len(result.samples), result.macro_accuracy, result.by_moment[MEAN], means))
    header = ["", "% right", *others, "questions", "moments counted once", "95 % interval"]
    return header, [
        (name, _percent(share), *map(_percent, more), f"{n:,}", _percent(once.value), _percent(once.low, once.high))
        for name, n, share, once, more in rows
    ]


def _plot_types(data: ReportData) -> list[tuple[str, str]]:
    """Plot the accuracy by question type, of the VLM beside its base and CLIP."""
    results = {"VLM": score(data.official)}
    if data.base_answers:
        results["base"] = score_base(data)
    if data.clip_samples:
        results["CLIP"] = BenchmarkResult(data.clip_samples)
    correct, total = Counter(), Counter()
    for name, result in results.items():
        for question_type, number in result.num_by_type.items():
            total[question_type, name] = number
            correct[question_type, name] = number * result.accuracy_by_type[question_type]
    title = "% right by type, with 95 % intervals"
    return [(title, plot_accuracy(title, correct, total, list(results), connect=False))]


def _plot_groups(data: ReportData) -> list[tuple[str, str]]:
    """Plot the accuracy by difficulty; a grouping with a single group is left out."""
    groups = {
        "% right by number of karts in the view": answers.group_by_num_karts,
        "% right by shorter side of the deciding kart's box, in pixels": answers.group_by_kart_size,
    }
    if data.training_pairs:
        title = "% right by whether train has this ego kart on this track"
        groups[title] = answers.group_by_training_pair(data.training_pairs)
    counts = {title: count_correct(data.official, group) for title, group in groups.items()}
    return [
        (title, plot_accuracy(title, correct, total, QUESTION_TYPES))
        for title, (correct, total) in counts.items()
        if len({group for group, _ in total}) > 1
    ]


def _plot_confusions(data: ReportData) -> list[tuple[str, str]]:
    """Plot confusion matrices of the types whose answers are names; one without a wrong answer is left out."""
    plots = []
    for question_type, title in {
        "ego": "Ego kart by answer, % of each row",
        "track": "Track by answer, % of each row",
    }.items():
        rows = [answer for answer in data.official if answer.question_type == question_type]
        if not all(answer.is_correct for answer in rows):
            pairs = [(row.truth.lower(), row.answer.strip().lower()) for row in rows]
            plots.append((title, plot_confusions(title, pairs)))
    return plots


def _choose_cards(causes: list[Cause]) -> list[tuple[Cause, list[AnsweredQuestion]]]:
    """Choose errors of each cause for cards, each under the rarest of its causes."""
    cards, used = {}, set()
    for cause in reversed(causes):
        cards[cause.name] = top_errors((error for error in cause.errors if error not in used), NUM_CARDS)
        used.update(cards[cause.name])
    return [(cause, cards[cause.name]) for cause in causes]


def crop_window(answer: AnsweredQuestion) -> Window | None:
    """Return the part of a view around the kart that makes the question hard; None if that is the whole view."""
    kart = answer.deciding_kart
    if kart is None:
        return None
    x1, y1, x2, y2 = kart.box
    ratio = VIEW_SIZE[1] / VIEW_SIZE[0]
    width = min(max(CROP_MARGIN * max(x2 - x1, (y2 - y1) / ratio), MIN_CROP_PX), MAX_CROP_PX)
    height = width * ratio
    x, y = (
        min(max(center - side / 2, 0), whole - side)
        for center, side, whole in zip(kart.center, (width, height), VIEW_SIZE, strict=True)
    )
    return Window(x, y, width, height)


def _image_url(path: Path) -> str:
    """Return an image, reduced if it is large, as a data URL."""
    picture = open_image(path)
    picture.thumbnail(MAX_IMAGE_SIZE, Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
