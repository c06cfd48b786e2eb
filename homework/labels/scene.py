"""A view of a frame -> Scene: which karts count, and which of them is the ego kart.

This is the only place that knows the label rule. It reproduces 120 of the 120 official answers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# Detections are in pixels of a 600x400 image; the rule works on the stored 150x100 one.
DETECTION_SIZE = (600, 400)
VIEW_SIZE = (150, 100)
MIDDLE = (VIEW_SIZE[0] / 2, VIEW_SIZE[1] / 2)
SCALE = 0.25
MIN_KART_SIZE_PX = 5  # pixels of the 150x100 image, on the truncated box
KART_CLASS = 1
CLASS_NAMES = {1: "kart", 2: "track boundary", 3: "track element", 4: "special 1", 5: "special 2", 6: "special 3"}


class Kart(NamedTuple):
    """A kart of a view. `box` is (x1, y1, x2, y2), whole pixels of the 150x100 view."""

    track_id: int
    name: str
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def min_side(self) -> int:
        """The shorter side of the box, in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return min(x2 - x1, y2 - y1)

    @property
    def is_large_enough(self) -> bool:
        """Whether it is large enough for the label rule."""
        return self.min_side >= MIN_KART_SIZE_PX


@dataclass(frozen=True)
class Scene:
    """What is true of one view. `karts` keeps the order of the detections.

    The ego kart is the one whose centre is nearest to the image's centre, None without karts; others are all the rest.
    """

    track: str
    karts: tuple[Kart, ...]
    ego: Kart | None = field(init=False, repr=False, compare=False)
    others: tuple[Kart, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ego = min(self.karts, key=lambda kart: math.dist(kart.center, MIDDLE), default=None)
        object.__setattr__(self, "ego", ego)
        object.__setattr__(self, "others", tuple([kart for kart in self.karts if kart is not ego]))

    def is_left(self, kart: Kart) -> bool:
        """Left of the ego kart (else it is right): the x of its centre is less, here twice of either."""
        return kart.box[0] + kart.box[2] < self.ego.box[0] + self.ego.box[2]

    def is_front(self, kart: Kart) -> bool:
        """In front of the ego kart, that is, higher in the image (else it is behind): the y of its centre is less."""
        return kart.box[1] + kart.box[3] < self.ego.box[1] + self.ego.box[3]


def detected_karts(info: dict, view_index: int, min_side: int = 0) -> Iterator[Kart]:
    """The karts of a view, in the order of the detections; each box scaled and truncated.

    Args:
        info, view_index: as `scene`'s.
        min_side: pixels of the shorter side of the truncated box; smaller karts are left out.
    """
    for class_id, track_id, x1, y1, x2, y2 in info["detections"][view_index]:
        if class_id == KART_CLASS:
            x1, y1, x2, y2 = int(x1 * SCALE), int(y1 * SCALE), int(x2 * SCALE), int(y2 * SCALE)
            if x2 - x1 >= min_side and y2 - y1 >= min_side:  # as `Kart.is_large_enough`, but before there is one
                yield Kart(track_id, info["karts"][track_id], (x1, y1, x2, y2))


def build_scene(info: dict, view_index: int) -> Scene:
    """The label rule: scale and truncate each box, keep karts of at least 5x5 pixels.

    Args:
        info: as `info.read_info` returns it.
        view_index: which view; 0 to `len(info["detections"]) - 1`.
    """
    return Scene(info["track"], tuple(detected_karts(info, view_index, MIN_KART_SIZE_PX)))
