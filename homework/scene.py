"""A view of a frame -> Scene: which karts count, and which of them is the ego kart.

This is the only place that knows the label rule. It reproduces 120 of the 120 official answers.
"""

import math
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .errors import InputError, no_split, read_json

# Detections are in pixels of a 600x400 image; the rule works on the stored 150x100 one.
DETECTION_SIZE = (600, 400)
VIEW_SIZE = (150, 100)
SCALE = 0.25
MIN_SIDE = 5  # pixels of the 150x100 image, on the truncated box
KART_CLASS = 1
CLASS_NAMES = {1: "kart", 2: "track boundary", 3: "track element", 4: "special 1", 5: "special 2", 6: "special 3"}


@dataclass(frozen=True)
class Kart:
    """A kart of a view. `box` is (x1, y1, x2, y2), whole pixels of the 150x100 view."""

    track_id: int
    name: str
    box: tuple[int, int, int, int]

    @cached_property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def side(self) -> int:
        """The shorter side of the box, in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return min(x2 - x1, y2 - y1)

    @property
    def counts(self) -> bool:
        """Whether it is large enough for the label rule."""
        return self.side >= MIN_SIDE


@dataclass(frozen=True)
class Scene:
    """What is true of one view. `karts` keeps the order of the detections."""

    track: str
    karts: tuple[Kart, ...]

    @cached_property
    def ego(self) -> Kart | None:
        """The kart whose centre is nearest to the image's centre; None without karts."""
        middle = (VIEW_SIZE[0] / 2, VIEW_SIZE[1] / 2)
        return min(self.karts, key=lambda kart: math.dist(kart.center, middle), default=None)

    @cached_property
    def others(self) -> tuple[Kart, ...]:
        """Every kart but the ego kart."""
        return tuple(kart for kart in self.karts if kart is not self.ego)

    def is_left(self, kart: Kart) -> bool:
        """Left of the ego kart (else it is right)."""
        return kart.center[0] < self.ego.center[0]

    def is_front(self, kart: Kart) -> bool:
        """In front of the ego kart, that is, higher in the image (else it is behind)."""
        return kart.center[1] < self.ego.center[1]


def read_info(path: str | Path) -> dict:
    """An `*_info.json`, checked: track, karts and detections are there and fit together.

    Raises:
        InputError: a missing or broken file, key, kart or box, named in one line.
    """
    info = read_json(path)
    remedy = "fix the frame or delete its files"
    if not isinstance(info, dict):
        raise InputError(path, "expected an object with track, karts and detections", remedy)
    for key, kind in (("track", str), ("karts", list), ("detections", list)):
        if not isinstance(info.get(key), kind):
            raise InputError(path, f"`{key}` is missing or not a {kind.__name__}", remedy)
    if not all(isinstance(kart, str) for kart in info["karts"]):
        raise InputError(path, "`karts` has an entry that is not a name", remedy)
    for view, detections in enumerate(info["detections"]):
        if not isinstance(detections, list):
            raise InputError(path, f"view {view}: detections are not a list", remedy)
        for detection in detections:
            problem = _problem(detection, len(info["karts"]))
            if problem:
                raise InputError(path, f"view {view}: detection {reprlib.repr(detection)}: {problem}", remedy)
    return info


def _problem(detection, num_karts: int) -> str | None:
    """What is wrong with one detection, or None."""
    if type(detection) is not list or len(detection) != 6:
        return "not [class_id, track_id, x1, y1, x2, y2]"
    types = set(map(type, detection))
    # an integer is finite, and may be too large for `isfinite`
    if types != {int} and not (types <= {int, float} and all(type(n) is int or math.isfinite(n) for n in detection)):
        return "a value that is not a finite number"
    class_id, track_id, x1, y1, x2, y2 = detection
    if not (0 <= x1 <= x2 <= DETECTION_SIZE[0] and 0 <= y1 <= y2 <= DETECTION_SIZE[1]):
        if x1 > x2 or y1 > y2:
            return "the box ends before it begins"
        return f"the box leaves the {DETECTION_SIZE[0]}x{DETECTION_SIZE[1]} image"
    if class_id == KART_CLASS and not (type(track_id) is int and 0 <= track_id < num_karts):
        return f"kart {track_id} is not among the {num_karts} karts of the frame"
    return None


def detected_karts(info: dict, view_index: int) -> Iterator[Kart]:
    """Every kart of a view, however small, in the order of the detections; each box scaled and truncated.

    Args:
        info, view_index: as `scene`'s.
    """
    for class_id, track_id, x1, y1, x2, y2 in info["detections"][view_index]:
        if class_id == KART_CLASS:
            box = int(x1 * SCALE), int(y1 * SCALE), int(x2 * SCALE), int(y2 * SCALE)
            yield Kart(track_id, info["karts"][track_id], box)


def scene(info: dict, view_index: int) -> Scene:
    """The label rule: scale and truncate each box, keep karts of at least 5x5 pixels.

    Args:
        info: as `read_info` returns it.
        view_index: which view; 0 to `len(info["detections"]) - 1`.
    """
    return Scene(info["track"], tuple(kart for kart in detected_karts(info, view_index) if kart.counts))


def scenes(info_path: str | Path) -> list[tuple[int, Scene]]:
    """All (view index, scene) of one frame; the file is read once.

    Raises:
        InputError: see `read_info`.
    """
    info = read_info(info_path)
    return [(view, scene(info, view)) for view in range(len(info["detections"]))]


def info_files(split_dir: str | Path) -> list[Path]:
    """The `*_info.json` of a split, sorted.

    Raises:
        InputError: the folder is missing or holds no frame.
    """
    split_dir = Path(split_dir)
    if not split_dir.is_dir():
        raise no_split(split_dir, "no such folder")
    files = sorted(split_dir.glob("*_info.json"))
    if not files:
        raise InputError(split_dir, "no *_info.json in it", "run `python -m supertux download`")
    return files


def image_file(info_path: str | Path, view_index: int) -> str:
    """The view's image relative to `data/`, e.g. `train/00a00_03_im.jpg`."""
    folder, name = os.path.split(info_path)
    return f"{os.path.basename(folder)}/{name.removesuffix('_info.json')}_{view_index:02d}_im.jpg"


def frame_of(image_name: str) -> tuple[str, int]:
    """(`split/FFFFF`, view index) of an image file's name, the inverse of `image_file`.

    Raises:
        InputError: the name is not `.../FFFFF_VV_im.jpg`.
    """
    try:
        frame, view, end = image_name.rsplit("_", 2)
        if end != "im.jpg" or len(view) != 2 or not view.isdigit():
            raise ValueError
        return frame, int(view)
    except ValueError:
        raise InputError(image_name, "not a view's name (FFFFF_VV_im.jpg)", "rename or remove it") from None
