"""The picture of `check`: a view with its boxes, and beside it what is asked or said about it."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import InputError
from ..utils.io import atomic_write
from .frame_info import read_frame_info
from .rows import image_file
from .scene import KART_CLASS, SCALE, VIEW_SIZE, Scene, build_scene

COLOURS = {"ego": "#ff3b30", "kart": "#ffd60a", "small": "#64d2ff", "other": "#ffffff"}
LINES = {
    "ego": {"linewidth": 3},
    "kart": {"linewidth": 2},
    "small": {"linewidth": 1.2, "linestyle": ":"},
    "other": {"linewidth": 0.6, "alpha": 0.45},
}
LEGEND = {"ego": "ego kart", "kart": "kart", "small": "kart too small to count", "other": "other detection"}
WIDTH, IMAGE_WIDTH = 15.0, 8.4  # inches
LINE = 0.25  # inches a row of text
LABEL_HEIGHT = 5  # pixels of the view

Pairs = Callable[[Scene], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class LabeledBox:
    """What is at (x1, y1, x2, y2), pixels of the 150x100 view.

    `role` is `ego`, `kart`, `small` (a kart too small to count) or `other` (no kart); `name` is empty for the last.
    """

    role: str
    name: str
    corners: tuple[float, float, float, float]


def boxes_for_drawing(info: dict, view_index: int, view: Scene) -> list[LabeledBox]:
    """The boxes of a view in the order to draw them: the ego kart's last, so that it is on top.

    Args:
        info: as `read_frame_info` returns it.
        view: the scene of this view.
    """
    found = []
    kept = {kart.track_id for kart in view.karts}
    for class_id, track_id, *box in info["detections"][view_index]:
        scaled = tuple(value * SCALE for value in box)
        if class_id != KART_CLASS:
            found.append(LabeledBox("other", "", scaled))
        elif track_id not in kept:
            found.append(LabeledBox("small", info["karts"][track_id], scaled))
    found += [LabeledBox("kart", kart.name, kart.box) for kart in view.others]
    return found + ([LabeledBox("ego", view.ego.name, view.ego.box)] if view.ego else [])


def show_view(info_file: Path, view_index: int, pairs: Pairs, what: str, output: Path | None) -> None:
    """Print the pairs of a view, and show them beside its picture.

    Args:
        pairs: the rows of text of a scene, each (text, answer).
        what: what they are, for the title.
        output: the picture's file; None shows it on a screen, and without one saves it to a file.

    Raises:
        InputError: a broken frame, no such view, no readable image, a picture format that isn't known.
    """
    info = read_frame_info(info_file)
    num_views = len(info["detections"])
    if not 0 <= view_index < num_views:
        remedy = f"take one of 0 to {num_views - 1}" if num_views else "it has none; take another frame"
        raise InputError(info_file, f"no view {view_index}", remedy)
    view = build_scene(info, view_index)
    rows = list(pairs(view))
    # the name as generated, but in the frame's own folder, wherever that is
    image_path = Path(info_file).parent / Path(image_file(info_file, view_index)).name
    figure = _draw(image_path, boxes_for_drawing(info, view_index, view), view.track, rows, what)
    for text, answer in rows:
        print(f"{text} {answer}".rstrip())
    _show_or_save(figure, output, f"{image_path.stem.removesuffix('_im')}_{what.replace(' ', '_')}.png")


def _draw(image_path: Path, boxes: list[LabeledBox], track: str, rows: list[tuple[str, str]], what: str):
    """The figure: the view on the left, the rows on the right."""
    import matplotlib.pyplot as plt

    from ..utils.images import open_image

    image_height = IMAGE_WIDTH * VIEW_SIZE[1] / VIEW_SIZE[0]
    height = max(image_height + 1.1, LINE * (len(rows) + 3))
    figure = plt.figure(figsize=(WIDTH, height), facecolor="white")
    bottom = 1 - (image_height + 0.55) / height
    axes = figure.add_axes((0.2 / WIDTH, bottom, IMAGE_WIDTH / WIDTH, image_height / height))
    axes.imshow(open_image(image_path), extent=(0, VIEW_SIZE[0], VIEW_SIZE[1], 0), interpolation="lanczos")
    axes.set_title(f"{image_path.parent.name}/{image_path.name}   ({track})", fontsize=12, loc="left")
    axes.set_axis_off()
    _draw_boxes(axes, boxes)
    _write_rows(figure, height, rows, what)
    return figure


def _draw_boxes(axes, boxes: list[LabeledBox]) -> None:
    """Boxes of karts with their names, the ego kart's in its own colour, the rest thin."""
    from matplotlib.lines import Line2D

    for box in boxes:
        _draw_box(axes, box)
    taken = []
    named = [box for box in boxes if box.role in ("ego", "kart")]
    for box in sorted(named, key=lambda box: -box.corners[1]):  # upwards, as names give way upwards
        _label(axes, box, taken)
    styles = {role: {"color": COLOURS[role], **LINES[role]} for role in LEGEND}
    styles["other"] = {"color": COLOURS["other"], "linewidth": 0.8}  # thinner, as in the picture, it could not be seen
    handles = [Line2D([], [], label=LEGEND[role], **style) for role, style in styles.items()]
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": len(styles)}
    axes.legend(handles=handles, facecolor="#555555", labelcolor="white", fontsize=10, **legend)


def _draw_box(axes, box: LabeledBox) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box.corners
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=COLOURS[box.role], **LINES[box.role]))


def _label(axes, box: LabeledBox, taken: list[tuple[float, float, float]]) -> None:
    """A kart's name above its box, higher up where other names are in the way.

    Args:
        taken: (x, y, half width) of the names so far, to which this one is added.
    """
    is_ego = box.role == "ego"
    text = f"{box.name} (ego)" if is_ego else box.name
    half = 0.85 * len(text) + 1.5  # about the text's width, in pixels of the view
    x = min(max((box.corners[0] + box.corners[2]) / 2, half), VIEW_SIZE[0] - half)
    y = max(box.corners[1] - 1.5, LABEL_HEIGHT)
    while any(abs(x - x2) < half + half2 and abs(y - y2) < LABEL_HEIGHT for x2, y2, half2 in taken):
        y -= 1
    taken.append((x, y, half))
    patch = {"boxstyle": "round,pad=0.2", "facecolor": COLOURS[box.role], "edgecolor": "none", "alpha": 0.9}
    style = {"ha": "center", "va": "bottom", "fontsize": 10, "color": "white" if is_ego else "black"}
    axes.text(x, y, text, bbox=patch, **style)


def _write_rows(figure, height: float, rows: list[tuple[str, str]], what: str) -> None:
    """The rows from the top right down, answers in a column of their own."""
    left, right = (IMAGE_WIDTH + 0.5) / WIDTH, (IMAGE_WIDTH + 4.7) / WIDTH
    figure.text(left, 1 - 0.42 / height, f"{len(rows)} {what}", fontsize=12, weight="bold", va="center")
    for number, (text, answer) in enumerate(rows):
        y = 1 - (0.8 + LINE * number) / height
        figure.text(left, y, text, fontsize=10.5, va="center", color="#333333")
        figure.text(right, y, answer, fontsize=10.5, va="center", weight="bold")


def _show_or_save(figure, output: Path | None, name: str) -> None:
    """Show a figure where there is a screen and no `output`; else save it and say where."""
    import matplotlib.pyplot as plt

    # without a screen matplotlib falls back to this one, which only draws into memory
    if output is None and plt.get_backend().lower() != "agg":
        plt.show()
        return
    output = Path(output) if output else Path(tempfile.gettempdir()) / name
    kind = output.suffix.removeprefix(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if kind not in known:
        raise InputError(output, f"can't save a picture as .{kind}", f"take one of {', '.join(sorted(known))}")
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format=kind, dpi=110)
    print(f"saved to {output.resolve()}")
