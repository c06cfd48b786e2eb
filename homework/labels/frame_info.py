"""Read and check an `*_info.json`, and build the scenes of its views.

The course's grader reads no frames and its environment may lack msgspec, so modules that it loads must not import this
one at their top. Nor must modules of commands, so that `cli_errors` can say in one line that msgspec is missing.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from ..utils.errors import InputError, first_line
from ..utils.io import open_json
from .rows import parse_image_file
from .scene import DETECTION_SIZE, KART_CLASS, Scene, build_scene

REMEDY = "fix the frame or delete its files"

_X, _Y = (Annotated[float, msgspec.Meta(ge=0, le=size)] for size in DETECTION_SIZE)


class FrameInfo(TypedDict):
    """Content of an `*_info.json`; other keys are ignored."""

    track: str
    karts: list[str]  # the index of a kart is its track id
    detections: list[list[tuple[int, int, _X, _Y, _X, _Y]]]  # per view: (class id, track id, x1, y1, x2, y2)
    distance_down_track: NotRequired[Any]  # checked where it is used, in `homework.labels.duplicates`


_DECODER = msgspec.json.Decoder(FrameInfo)


def read_frame_info(path: str | Path) -> FrameInfo:
    """Read an `*_info.json` (strict JSON, UTF-8); check that track, karts and detections are consistent.

    Raises:
        InputError: a missing or broken file, key, kart or box, named in one line.
    """
    with open_json(path) as content:
        try:
            info = _DECODER.decode(content)
        except (msgspec.ValidationError, RecursionError) as error:  # valid JSON, but not a frame
            problem = first_line(error)
            view = re.search(r"\$\.detections\[(\d+)\]", problem)
            raise InputError(path, f"view {view[1]}: {problem}" if view else problem, REMEDY) from None
    num_karts = len(info["karts"])
    for view, detections in enumerate(info["detections"]):
        for class_id, track_id, x1, y1, x2, y2 in detections:
            if x1 > x2 or y1 > y2:
                box = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
                raise InputError(path, f"view {view}: expected a box (x1 <= x2, y1 <= y2), got {box}", REMEDY)
            if class_id == KART_CLASS and not 0 <= track_id < num_karts:
                raise InputError(path, f"view {view}: no kart {track_id} among the {num_karts} of `karts`", REMEDY)
    return info


def read_scene(image: str, data_dir: Path, read: Callable = read_frame_info) -> Scene:
    """Read the scene of an image file from its frame; raises what `read_frame_info` does."""
    frame, view = parse_image_file(image)
    info_file = data_dir / f"{frame}_info.json"
    info = read(info_file)
    if view >= len(info["detections"]):
        raise InputError(info_file, f"no view {view}", f"remove the rows about {image}")
    return build_scene(info, view)


def read_scenes(info_path: str | Path) -> list[tuple[int, Scene]]:
    """Read one frame and return (view index, scene) of each view; raises what `read_frame_info` does."""
    info = read_frame_info(info_path)
    return [(view, build_scene(info, view)) for view in range(len(info["detections"]))]
