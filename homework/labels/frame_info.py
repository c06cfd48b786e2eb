"""An `*_info.json`, read and checked, and the scenes of its views.

The course's grader reads no frames and may lack msgspec: what it loads must not import this module at its top.
"""

import re
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from ..utils.errors import InputError, first_line
from ..utils.io import open_json
from .scene import DETECTION_SIZE, KART_CLASS, Scene, build_scene

REMEDY = "fix the frame or delete its files"

_X, _Y = (Annotated[float, msgspec.Meta(ge=0, le=size)] for size in DETECTION_SIZE)


class FrameInfo(TypedDict):
    """What is read of an `*_info.json`; other keys are left out."""

    track: str
    karts: list[str]  # a kart's place in it is its track id
    detections: list[list[tuple[int, int, _X, _Y, _X, _Y]]]  # of each view: class id, track id, x1, y1, x2, y2
    distance_down_track: NotRequired[Any]  # checked where it is needed, in `homework.labels.duplicates`


_DECODER = msgspec.json.Decoder(FrameInfo)


def read_frame_info(path: str | Path) -> FrameInfo:
    """An `*_info.json`, strict JSON in UTF-8, checked: track, karts and detections are there and fit together.

    Raises:
        InputError: a missing or broken file, key, kart or box, named in one line.
    """
    with open_json(path) as content:
        try:
            info = _DECODER.decode(content)
        except (msgspec.ValidationError, RecursionError) as error:  # it is JSON, but no frame
            problem = first_line(error)
            view = re.search(r"\$\.detections\[(\d+)\]", problem)
            raise InputError(path, f"view {view[1]}: {problem}" if view else problem, REMEDY) from None
    num_karts = len(info["karts"])
    for view, detections in enumerate(info["detections"]):
        for class_id, track_id, x1, y1, x2, y2 in detections:
            if x1 > x2 or y1 > y2:
                box = f"the box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
                raise InputError(path, f"view {view}: {box} ends before it begins", REMEDY)
            if class_id == KART_CLASS and not 0 <= track_id < num_karts:
                raise InputError(path, f"view {view}: kart {track_id} is not among the {num_karts} of `karts`", REMEDY)
    return info


def read_scenes(info_path: str | Path) -> list[tuple[int, Scene]]:
    """All (view index, scene) of one frame; the file is read once.

    Raises:
        InputError: see `read_frame_info`.
    """
    info = read_frame_info(info_path)
    return [(view, build_scene(info, view)) for view in range(len(info["detections"]))]
