"""Draw the picture of `check`: a view with its boxes, and its questions or captions beside it."""

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..utils.errors import InputError
from ..utils.images import open_image
from ..utils.io import atomic_write
from .frame_info import read_frame_info
from .rows import image_file
from .scene import DETECTION_SCALE, KART_CLASS, VIEW_SIZE, Scene, build_scene

ROLE_COLORS = {"ego": "#ff3b30", "kart": "#ffd60a", "small": "#64d2ff", "other": "#ffffff"}
LINE_STYLES = {
    "ego": {"linewidth": 3},
    "kart": {"linewidth": 2},
    "small": {"linewidth": 1.2, "linestyle": ":"},
    "other": {"linewidth": 0.6, "alpha": 0.45},
}
LEGEND = {"ego": "ego kart", "kart": "kart", "small": "kart below the minimum size", "other": "other detection"}
WIDTH_IN, MIN_HEIGHT_IN, ROW_HEIGHT_IN = 15.0, 6.7, 0.25
NAME_HEIGHT_PX = 5  # in pixels of the view

RowsFn = Callable[[Scene], Iterable[tuple[str, str]]]


@dataclass(frozen=True)
class LabeledBox:
    """A detection at (x1, y1, x2, y2), in pixels of the 150x100 view.

    `role` is `ego`, `kart`, `small` (below the minimum size) or `other` (not a kart, with an empty `name`).
    """

    role: str
    name: str
    corners: tuple[float, float, float, float]


def boxes_for_drawing(info: dict, view_index: int, scene: Scene) -> list[LabeledBox]:
    """List the boxes of a view in drawing order: the ego kart's last, so that it is on top."""
    boxes = []
    kept = {kart.track_id for kart in scene.karts}
    for class_id, track_id, *corners in info["detections"][view_index]:
        scaled = tuple(value * DETECTION_SCALE for value in corners)
        if class_id != KART_CLASS:
            boxes.append(LabeledBox("other", "", scaled))
        elif track_id not in kept:
            boxes.append(LabeledBox("small", info["karts"][track_id], scaled))
    boxes += [LabeledBox("kart", kart.name, kart.box) for kart in scene.others]
    return boxes + ([LabeledBox("ego", scene.ego.name, scene.ego.box)] if scene.ego else [])


def show_view(info_file: Path, view_index: int, rows_fn: RowsFn, title: str, output: Path | None) -> None:
    """Print the questions or captions of a view, and show them beside its picture.

    Args:
        rows_fn: returns the (text, answer) rows of a scene.
        title: the heading of the rows.
        output: file to save the picture to; None opens a window, or saves to a temporary file if there is no display.

    Raises:
        InputError: a broken frame or image, a missing view, or an unknown picture format.
    """
    info = read_frame_info(info_file)
    num_views = len(info["detections"])
    if not 0 <= view_index < num_views:
        remedy = f"choose one of 0 to {num_views - 1}" if num_views else "the frame has none, choose another"
        raise InputError(info_file, f"no view {view_index}", remedy)
    scene = build_scene(info, view_index)
    rows = list(rows_fn(scene))
    # annotations name the image relative to data/, but the frame may be in any folder
    image_path = Path(info_file).parent / Path(image_file(info_file, view_index)).name
    height_in = max(MIN_HEIGHT_IN, ROW_HEIGHT_IN * (len(rows) + 3))
    figure, in_window = _new_figure(output is None, figsize=(WIDTH_IN, height_in), layout="constrained")
    axes, text_axes = figure.subplots(1, 2, width_ratios=(8, 6))
    axes.imshow(open_image(image_path), extent=(0, VIEW_SIZE[0], VIEW_SIZE[1], 0), interpolation="lanczos")
    axes.set_title(f"{image_path.parent.name}/{image_path.name}   ({scene.track})", fontsize=12, loc="left")
    _draw_boxes(axes, boxes_for_drawing(info, view_index, scene))
    text_axes.set_title(f"{len(rows)} {title}", fontsize=12, weight="bold", loc="left")
    if rows:
        table = text_axes.table(rows, loc="upper left", edges="open", cellLoc="left", colWidths=(0.72, 0.28))
        table.auto_set_font_size(False)
        table.set_fontsize(10.5)
        table.scale(1, 1.25)
    for each in (axes, text_axes):
        each.set_axis_off()
        each.set_anchor("N")
    for text, answer in rows:
        print(f"{text} {answer}".rstrip())
    if not in_window:
        _save(figure, Path(output) if output else _temporary_file(image_path, title))
    else:
        import matplotlib.pyplot as plt

        plt.show()


def _temporary_file(image_path: Path, title: str) -> Path:
    """Name a file for a picture that has no window, one for each view of each split and data folder."""
    print("no window can be opened here; --output FILE chooses where the picture is saved")
    split = image_path.resolve().parent
    words = split.parent.name, split.name, image_path.stem.removesuffix("_im"), title.replace(" ", "_")
    return Path(tempfile.gettempdir()) / f"{'_'.join(words)}.png"


def _new_figure(in_window: bool, **options):
    """Return (figure, whether it has a window): it has one if asked for and there is a display."""
    backend = os.environ.pop("MPLBACKEND", None)  # an unknown name makes the import of matplotlib fail
    try:
        import matplotlib.pyplot as plt
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if in_window:
        try:
            if backend:
                plt.switch_backend(backend)
            figure = plt.figure(**options)
            if figure.canvas.required_interactive_framework:
                return figure, True
        except Exception:  # the backend is unknown, not installed, or its toolkit finds no display: any error type
            pass
    return Figure(**options), False


def _draw_boxes(axes, boxes: list[LabeledBox]) -> None:
    """Draw all boxes, the names of the karts, and a legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    for box in boxes:
        x1, y1, x2, y2 = box.corners
        style = {"edgecolor": ROLE_COLORS[box.role], **LINE_STYLES[box.role]}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **style))
    for box, text, x, y in place_names(boxes):
        is_ego = box.role == "ego"
        patch = {"boxstyle": "round,pad=0.2", "facecolor": ROLE_COLORS[box.role], "edgecolor": "none", "alpha": 0.9}
        style = {"ha": "center", "va": "bottom", "fontsize": 10, "color": "white" if is_ego else "black"}
        axes.text(x, y, text, bbox=patch, **style)
    styles = {role: {"color": ROLE_COLORS[role], **LINE_STYLES[role]} for role in LEGEND}
    styles["other"] = {"color": ROLE_COLORS["other"], "linewidth": 0.8}  # the picture's thin line is invisible here
    handles = [Line2D([], [], label=LEGEND[role], **style) for role, style in styles.items()]
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.01), "ncols": len(styles)}
    axes.legend(handles=handles, facecolor="#555555", labelcolor="white", fontsize=10, **legend)


def place_names(
    boxes: list[LabeledBox],
    height: float = NAME_HEIGHT_PX,
    window: tuple[float, float, float, float] = (0, 0, *VIEW_SIZE),
) -> list[tuple[LabeledBox, str, float, float]]:
    """Place the name of each kart above its box, moved up as far as other names overlap it.

    Args:
        height: of a name.
        window: the part of the view that is shown, (x1, y1, x2, y2); names stay inside.

    Returns:
        (box, name, center x, lower y) of each kart in the window that is large enough.
    """
    left, top, right, bottom = window
    placed = []
    for box in sorted(boxes, key=lambda box: -box.corners[1]):  # from the bottom up, as names are moved up
        x1, y1, x2, y2 = box.corners
        if box.role not in ("ego", "kart") or x2 <= left or x1 >= right or y2 <= top or y1 >= bottom:
            continue
        text = f"{box.name} (ego)" if box.role == "ego" else box.name
        half_width = height * (0.17 * len(text) + 0.3)  # approximate
        x = min(max((x1 + x2) / 2, left + half_width), right - half_width)
        y = max(y1 - 0.3 * height, top + height)
        while any(abs(x - x2) < half_width + other and abs(y - y2) < height for *_, x2, y2, other in placed):
            y -= height / 5
        placed.append((box, text, x, y, half_width))
    return [name[:4] for name in placed]


def _save(figure, output: Path) -> None:
    """Save a figure and print where."""
    suffix, known = output.suffix[1:].lower() or "png", figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(output, f"cannot save a picture as .{suffix}", f"choose one of {', '.join(sorted(known))}")
    with atomic_write(output) as temporary:
        figure.savefig(temporary, format=suffix, dpi=110)
    print(f"saved to {output.resolve()}")
