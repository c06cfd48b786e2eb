"""The boxes of a view, each with what it is, for a picture of any kind."""

from dataclasses import dataclass

from homework.draw import EGO, KART, OTHER, SMALL
from homework.scene import KART_CLASS, SCALE, Scene

COLOURS = {"ego": EGO, "kart": KART, "small": SMALL, "other": OTHER}


@dataclass(frozen=True)
class Box:
    """What is at (x1, y1, x2, y2), pixels of the 150x100 view.

    `role` is `ego`, `kart`, `small` (a kart too small to count) or `other` (no kart); `name` is empty for the last.
    """

    role: str
    name: str
    box: tuple[float, float, float, float]


def view_boxes(info: dict, view_index: int, view: Scene) -> list[Box]:
    """The boxes of a view, the ego kart's last, so that it is drawn on top.

    Args:
        info: as `read_info` returns it.
        view: the scene of this view.
    """
    found = []
    kept = {kart.track_id for kart in view.karts}
    for class_id, track_id, *box in info["detections"][view_index]:
        if class_id != KART_CLASS or track_id not in kept:
            scaled = tuple(value * SCALE for value in box)
            is_kart = class_id == KART_CLASS
            found.append(Box("small" if is_kart else "other", info["karts"][track_id] if is_kart else "", scaled))
    found += [Box("kart", kart.name, kart.box) for kart in view.others]
    return found + ([Box("ego", view.ego.name, view.ego.box)] if view.ego else [])
