"""Karts of one view on another."""

import numpy as np
from PIL import Image

RING = 4  # pixels around a box by which its light is judged
MOST_LIGHT = 2.0  # how much brighter or darker a pasted kart becomes, a channel, at most


def pasted(
    view: np.ndarray,
    box: tuple,
    donor: np.ndarray,
    donor_box: tuple,
    matched: float = 0.0,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of a view with what a box of another view shows in a box of its own, which has soft, round corners.

    Args:
        view: [100, 150, 3] uint8.
        box: x1, y1, x2, y2 in its pixels.
        donor: the other view.
        donor_box: in the other view's pixels.
        matched: how much of the difference in light between the places goes into the pasted kart, 0 to 1.
        kept: [100, 150] bool: pixels that stay as they are.
    """
    (u1, v1, u2, v2), (x1, y1, x2, y2) = donor_box, box
    view = view.copy()
    target = view[y1 : y2 + 1, x1 : x2 + 1]
    height, width = target.shape[:2]
    patch = Image.fromarray(donor[v1 : v2 + 1, u1 : u2 + 1]).resize((width, height), Image.Resampling.BILINEAR)
    patch = np.asarray(patch, dtype=np.float32)
    if matched:
        light = (_light_around(view, box) / _light_around(donor, donor_box)) ** matched
        patch = np.minimum(patch * np.clip(light, 1 / MOST_LIGHT, MOST_LIGHT), 255)
    y, x = (np.abs(np.linspace(-1, 1, n)) ** 4 for n in (height, width))
    alpha = np.clip((1.15 - y[:, None] - x[None]) / 0.3, 0, 1)[..., None]
    if kept is not None:
        alpha = alpha * ~kept[y1 : y2 + 1, x1 : x2 + 1, None]
    target[:] = alpha * patch + (1 - alpha) * target
    return view


def _light_around(view: np.ndarray, box: tuple) -> np.ndarray:
    """The mean of the pixels in a box and a ring around it. [3] float32, at least a little."""
    x1, y1, x2, y2 = box
    around = view[max(0, y1 - RING) : y2 + 1 + RING, max(0, x1 - RING) : x2 + 1 + RING]
    return around.mean((0, 1), dtype=np.float32) + 8


def hidden(box: tuple, shape: tuple[int, int]) -> np.ndarray:
    """About which pixels a kart covers that stands in front: all of its box but for the sides of its upper part.

    A driver sits in the middle and is narrower than the kart.

    Args:
        box: x1, y1, x2, y2.
        shape: rows and columns of the result.

    Returns:
        [rows, columns] bool.
    """
    x1, y1, x2, y2 = box
    covered = np.zeros(shape, dtype=bool)
    waist, side = y1 + round(0.4 * (y2 - y1)), round(0.25 * (x2 - x1))
    covered[waist : y2 + 1, x1 : x2 + 1] = True
    covered[y1:waist, x1 + side : x2 + 1 - side] = True
    return covered


def seen_of(box: tuple, covered: np.ndarray) -> tuple[tuple | None, float]:
    """(the box around what of a box isn't covered, None without any; the share of its pixels)."""
    x1, y1, x2, y2 = box
    free = ~covered[y1 : y2 + 1, x1 : x2 + 1]
    if not free.any():
        return None, 0.0
    rows, columns = (np.flatnonzero(free.any(axis)).tolist() for axis in (1, 0))
    return (x1 + columns[0], y1 + rows[0], x1 + columns[-1], y1 + rows[-1]), float(free.mean())


def overlap(a: tuple, b: tuple) -> bool:
    """Do two boxes share a pixel?"""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def stretch(old: tuple, new: tuple) -> float:
    """How much the content of a box is stretched or blown up in another: 0 where it isn't."""
    x, y = (np.log((new[i + 2] - new[i]) / (old[i + 2] - old[i])) for i in (0, 1))
    return abs(x - y) + max(0.0, x + y) / 2
