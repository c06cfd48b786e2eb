"""Our frames beside the course's: light, colour and sharpness by track as numbers, and a picture.

The release that drew the course's frames is older than the one of our art; `look.py` covers what differs, and its
ranges come from the ratios that are printed here.
"""

import io
import logging
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

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

SAMPLE = 150  # views of a track that are measured
PLACES = 3  # views of a track in the picture, of each kind
TRACKS_A_ROW = 2
TITLE, GAP = 14, 6  # pixels of the picture
MAX_BYTES = 600_000
QUALITIES = (85, 75, 65, 50, 35, 20)
GREY = np.array([0.299, 0.587, 0.114])
MEASURES = ("brightness", "contrast", "red", "green", "blue", "sharpness")


@dataclass(frozen=True)
class View:
    """A stored view, and how far down the track (metres) the kart is that it follows."""

    image: Path
    distance: float


def compare(*, ours: Path, course: Path = DATA_DIR / "train", out: Path = Path("docs/frames.jpg")) -> None:
    """Compare light, colour and sharpness of our frames with the course's, track by track, and save a picture of both.

    Example: python -m supertux compare --ours data/mine

    Args:
        ours: the folder that `render --out` got
        course: a split of the course's data
        out: where the picture goes
    """
    sides = [views_by_track(folder) for folder in (course, ours)]
    tracks = sorted(set(sides[0]) & set(sides[1]))
    if not tracks:
        raise InputError(ours, f"it has no track in common with {course}", "name another folder")
    table = np.array(
        [[measure(side[track]) for side in sides] for track in progress_bar(tracks, desc="measuring", unit="track")]
    )
    print("\n".join(report(tracks, table)))
    save_picture(out, tracks, *sides)
    logger.info(f"{out}: {PLACES} views each, the course's on the left, ours on the right")


def views_by_track(folder: Path) -> dict[str, list[View]]:
    """All views of the frames that show a moment of their own.

    Over half of the course's frames repeat another: after the race's end the karts stand still, and only their first
    frame is taken.

    Raises:
        InputError: no frames, or some without distances.
    """
    tracks, moments = defaultdict(list), set()
    for path in progress_bar(info_files(folder), desc="reading frames", unit="frame", delay=1):
        info = read_frame_info(path)
        moment = state_key(info, path)
        if moment in moments:
            continue
        moments.add(moment)
        for view in range(len(info["detections"])):
            image = folder.parent / image_file(path, view)
            tracks[info["track"]].append(View(image, info["distance_down_track"][view]))
    return tracks


def measure(views: list[View]) -> np.ndarray:
    """The mean over at most SAMPLE views of each of MEASURES, [6]; the same views each time."""
    if len(views) > SAMPLE:
        views = random.Random(0).sample(views, SAMPLE)
    return np.mean([measure_image(view.image) for view in views], 0)


def measure_image(path: Path) -> np.ndarray:
    """MEASURES of an image, [6].

    Of values from 0 to 1: the mean and the standard deviation of its grey, the means of its colours; and the mean
    absolute Laplacian of its grey over that deviation, so that neither light nor contrast changes the sharpness.

    Raises:
        OSError: the file is missing or no image.
    """
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"), float) / 255
    grey = image @ GREY
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    deviation = grey.std()
    return np.array([grey.mean(), deviation, *image.mean((0, 1)), np.abs(laplacian).mean() / max(1e-3, deviation)])


def report(tracks: list[str], table: np.ndarray) -> list[str]:
    """Lines: course and ours by track, their ratios, and the ratios' spread over the tracks.

    Args:
        tracks: t names.
        table: [t, 2, 6], the course's and our MEASURES.
    """
    ratios = table[:, 1] / np.maximum(1e-6, table[:, 0])
    lines = [f"{'':20}" + "".join(f"{name:^20}" for name in MEASURES)]
    lines.append(f"{'track':20}" + f"{'course':>7}{'ours':>6}{'ratio':>6} " * len(MEASURES))
    for track, (course, ours), ratio in zip(tracks, table, ratios, strict=True):
        cells = (f"{a:7.3f}{b:6.3f}{c:6.2f} " for a, b, c in zip(course, ours, ratio, strict=True))
        lines.append(f"{track:20}" + "".join(cells))
    lines.append("ratio ours / course over the tracks, by percentile:")
    for percent in (10, 50, 90):
        cells = "".join(f"{value:19.2f} " for value in np.percentile(ratios, percent, 0))
        lines.append(f"{percent:<20}{cells}")
    return [line.rstrip() for line in lines]


def similar_places(course: list[View], ours: list[View]) -> list[tuple[View, View]]:
    """Pairs of a course's view and one of ours whose karts are about as far down the track, from begin to end of it.

    The course's views, in order of their distance, are split into PLACES parts; each part gives the pair that is
    nearest together. No view comes twice.
    """
    pairs, free = [], list(ours)
    course = sorted(course, key=lambda view: view.distance)
    for part in np.array_split(np.arange(len(course)), PLACES):
        if not len(part) or not free:
            continue
        gaps = np.abs(np.array([[course[i].distance - view.distance for view in free] for i in part]))
        row, column = np.unravel_index(gaps.argmin(), gaps.shape)
        pairs.append((course[part[row]], free.pop(column)))
    return pairs


def save_picture(out: Path, tracks: list[str], course: dict[str, list[View]], ours: dict[str, list[View]]) -> None:
    """Save a JPEG of under MAX_BYTES with each track's name, and below it views of the course and ours."""
    width, height = VIEW_SIZE
    cell = (2 * PLACES * width + 2 * GAP, TITLE + height + GAP)
    rows = -(-len(tracks) // TRACKS_A_ROW)
    picture = Image.new("RGB", (cell[0] * min(len(tracks), TRACKS_A_ROW) - GAP, cell[1] * rows), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()
    for number, track in enumerate(tracks):
        row, column = divmod(number, TRACKS_A_ROW)
        x, y = column * cell[0], row * cell[1]
        right = x + PLACES * width + GAP
        draw.text((x + 2, y + 1), f"{track}: course", "black", font)
        draw.text((right + 2, y + 1), f"{track}: ours", "black", font)
        for place, pair in enumerate(similar_places(course[track], ours[track])):
            for left, view in zip((x, right), pair, strict=True):
                with Image.open(view.image) as image:
                    picture.paste(image.convert("RGB").resize(VIEW_SIZE), (left + place * width, y + TITLE))
    with atomic_write(out) as temporary:
        temporary.write_bytes(_small_jpeg(picture))


def _small_jpeg(picture: Image.Image) -> bytes:
    """The picture in the best of QUALITIES that stays under MAX_BYTES."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() < MAX_BYTES:
            break
    return stream.getvalue()
