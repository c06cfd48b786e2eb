"""Compare our frames with the course's: light, colour and sharpness by track as numbers, and a picture.

The ranges of `color_augment` come from the ratios that are printed here.
"""

import io
import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from homework.labels.duplicates import state_key
from homework.labels.frame_info import read_frame_info
from homework.labels.rows import DATA_DIR, image_file, info_files
from homework.labels.scene import VIEW_SIZE
from homework.utils.errors import InputError
from homework.utils.io import atomic_write
from homework.utils.progress import progress_bar

logger = logging.getLogger(__name__)

MAX_VIEWS_PER_TRACK = 150  # that are measured
PAIRS_PER_TRACK = 3  # in the picture
TRACKS_PER_ROW = 2
TITLE_PX, GAP_PX = 14, 6
MAX_BYTES = 600_000
QUALITIES = (85, 75, 65, 50, 35, 20)
GRAY_WEIGHTS = np.array([0.299, 0.587, 0.114])
STATISTICS = ("brightness", "contrast", "red", "green", "blue", "sharpness")


class StoredView(NamedTuple):
    """An image file, and how far down the track (metres) its camera target is."""

    image: Path
    distance: float


def compare(*, ours: Path, course: Path = DATA_DIR / "train", output: Path = Path("docs/frames.jpg")) -> None:
    """Compare light, colour and sharpness of our frames with the course's by track, and save a picture of both.

    Example: python -m supertux compare --ours data/mine

    Args:
        ours: a rendered split
        course: a split of the course's data
        output: the picture
    """
    course_views, our_views = views_by_track(course), views_by_track(ours)
    tracks = sorted(set(course_views) & set(our_views))
    if not tracks:
        raise InputError(ours, f"it has no track in common with {course}", "name another folder")
    bar = progress_bar(tracks, desc="measuring", unit="track")
    table = np.array([[mean_statistics(views[track]) for views in (course_views, our_views)] for track in bar])
    print("\n".join(format_table(tracks, table)))
    save_picture(output, tracks, course_views, our_views)
    logger.info(f"{output}: {PAIRS_PER_TRACK} views of each track, the course's on the left, ours on the right")


def views_by_track(folder: Path) -> dict[str, list[StoredView]]:
    """Collect all views of unique frames; over half of the course's frames repeat the game state of another."""
    tracks, states = defaultdict(list), set()
    for path in progress_bar(info_files(folder), desc="reading frames", unit="frame", delay=1):
        info = read_frame_info(path)
        state = state_key(info, path)
        if state in states:
            continue
        states.add(state)
        for view in range(len(info["detections"])):
            image = folder.parent / image_file(path, view)
            tracks[info["track"]].append(StoredView(image, info["distance_down_track"][view]))
    return tracks


def mean_statistics(views: list[StoredView]) -> np.ndarray:
    """Return the mean STATISTICS [6] of at most MAX_VIEWS_PER_TRACK views, the same ones each time."""
    if len(views) > MAX_VIEWS_PER_TRACK:
        views = random.Random(0).sample(views, MAX_VIEWS_PER_TRACK)
    return np.mean([image_statistics(view.image) for view in views], 0)


def image_statistics(path: Path) -> np.ndarray:
    """Return the STATISTICS [6] of an image, for values from 0 to 1.

    Brightness and contrast are the mean and the standard deviation of its gray values; red, green and blue the means of
    its channels; sharpness is the mean absolute Laplacian of the gray values over their deviation, so that neither
    light nor contrast changes it.
    """
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"), float) / 255
    gray = image @ GRAY_WEIGHTS
    inner = gray[1:-1, 1:-1]
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner
    deviation = gray.std()
    return np.array([gray.mean(), deviation, *image.mean((0, 1)), np.abs(laplacian).mean() / max(1e-3, deviation)])


def format_table(tracks: list[str], table: np.ndarray) -> list[str]:
    """Return lines with the STATISTICS [tracks, 2, 6] of the course and ours, their ratios, and the ratios' spread."""
    ratios = table[:, 1] / np.maximum(1e-6, table[:, 0])
    lines = [f"{'':20}" + "".join(f"{name:^20}" for name in STATISTICS)]
    lines.append(f"{'track':20}" + f"{'course':>7}{'ours':>6}{'ratio':>6} " * len(STATISTICS))
    for track, (course, ours), ratio in zip(tracks, table, ratios, strict=True):
        cells = (f"{a:7.3f}{b:6.3f}{c:6.2f} " for a, b, c in zip(course, ours, ratio, strict=True))
        lines.append(f"{track:20}" + "".join(cells))
    lines.append("ratio ours / course over the tracks, by percentile:")
    for percent in (10, 50, 90):
        cells = "".join(f"{value:19.2f} " for value in np.percentile(ratios, percent, 0))
        lines.append(f"{percent:<20}{cells}")
    return [line.rstrip() for line in lines]


def match_by_track_position(course: list[StoredView], ours: list[StoredView]) -> list[tuple[StoredView, StoredView]]:
    """Pair views of the course with views of ours whose camera targets are about as far down the track.

    The course's views, in order of their distance, are split into PAIRS_PER_TRACK parts; each part gives its closest
    pair. No view comes twice.
    """
    pairs, free = [], list(ours)
    course = sorted(course, key=lambda view: view.distance)
    for part in np.array_split(np.arange(len(course)), PAIRS_PER_TRACK):
        if len(part) and free:
            gaps = np.abs(np.array([[course[i].distance - view.distance for view in free] for i in part]))
            row, column = np.unravel_index(gaps.argmin(), gaps.shape)
            pairs.append((course[part[row]], free.pop(column)))
    return pairs


def save_picture(
    output: Path, tracks: list[str], course: dict[str, list[StoredView]], ours: dict[str, list[StoredView]]
) -> None:
    """Save a JPEG of under MAX_BYTES with each track's name, and below it views of the course and ours."""
    width, height = VIEW_SIZE
    cell = (2 * PAIRS_PER_TRACK * width + 2 * GAP_PX, TITLE_PX + height + GAP_PX)
    rows = -(-len(tracks) // TRACKS_PER_ROW)
    picture = Image.new("RGB", (cell[0] * min(len(tracks), TRACKS_PER_ROW) - GAP_PX, cell[1] * rows), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for number, track in enumerate(tracks):
        row, column = divmod(number, TRACKS_PER_ROW)
        x, y = column * cell[0], row * cell[1]
        right = x + PAIRS_PER_TRACK * width + GAP_PX
        draw.text((x + 2, y + 1), f"{track}: course", "black", font)
        draw.text((right + 2, y + 1), f"{track}: ours", "black", font)
        for place, pair in enumerate(match_by_track_position(course[track], ours[track])):
            for left, view in zip((x, right), pair, strict=True):
                with Image.open(view.image) as image:
                    picture.paste(image.convert("RGB").resize(VIEW_SIZE), (left + place * width, y + TITLE_PX))
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() < MAX_BYTES:
            break
    with atomic_write(output) as temporary:
        temporary.write_bytes(stream.getvalue())
