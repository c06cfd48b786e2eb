"""Augmentation of a view: random zoom, copy-paste of karts (arXiv:2012.07177), photometric jitter."""

import numpy as np
import torch
from numpy import ndarray
from PIL import Image
from torch import Tensor

from homework.labels.scene import DETECTION_SIZE, KART_CLASS, VIEW_SIZE

from .config import AugmentConfig

LIGHT_RING_PX = 4  # width of the ring around a box that counts towards its mean light
MAX_LIGHT_GAIN = 2.0  # limit of the per-channel gain or loss in light of a pasted kart

# Sizes of karts are those of the shorter side of their boxes
NUM_SOURCES = 8  # views among which the kart of the most similar box is chosen
FAR_MAX_SIZE_PX = 12  # smaller karts are far
BORDER_CUT = 0.2, 0.7  # range of the share of an added kart that a border hides
WINDOW_TOP_PX = (8, 56)  # range of a window's first row

Box = tuple[int, int, int, int]
Window = tuple[float, float, float]


def random_window(rng: np.random.Generator, max_zoom: float) -> Window:
    """Sample a part of a view, of the view's shape: left, top and width in pixels of the 150x100 view."""
    width = VIEW_SIZE[0] / rng.uniform(1, max_zoom)
    height = width * VIEW_SIZE[1] / VIEW_SIZE[0]
    return rng.uniform(0, VIEW_SIZE[0] - width), rng.uniform(0, VIEW_SIZE[1] - height), width


def zoom_view(view: ndarray, detections: list[list], window: Window) -> tuple[ndarray, list[list]]:
    """Resize a part of a view to a whole view, and give its karts' detections in the new view.

    Args:
        view: [100, 150, 3] uint8.
        detections: the view's, as in a frame's info, in pixels of the 600x400 image.
        window: see `random_window`.
    """
    left, top, width = window
    part = (left, top, left + width, top + width * VIEW_SIZE[1] / VIEW_SIZE[0])
    image = Image.fromarray(view).resize(VIEW_SIZE, Image.Resampling.BILINEAR, box=part)
    corner = np.array([left, top] * 2) * (DETECTION_SIZE[0] / VIEW_SIZE[0])
    zoomed = []
    for class_id, track_id, *box in detections:
        if class_id == KART_CLASS:
            box = np.clip((np.array(box) - corner) * VIEW_SIZE[0] / width, 0, DETECTION_SIZE * 2)
            zoomed.append([class_id, track_id, *box.tolist()])
    return np.asarray(image), zoomed


def jitter_colors(pixels: Tensor, rng: np.random.Generator, config: AugmentConfig) -> Tensor:
    """Vary gain per channel, offset, contrast and noise of each view. In and out: normalised pixels [b, 3, h, w]."""
    b = len(pixels)

    def uniform(center: float, deviation: float, channels: int) -> Tensor:
        values = rng.uniform(center - deviation, center + deviation, (b, channels, 1, 1))
        return torch.from_numpy(values.astype(np.float32))

    mean, contrast = pixels.mean((2, 3), keepdim=True), uniform(1, config.contrast, 1)
    gain, offset = uniform(1, config.gain, 3), uniform(0, config.offset, 1)
    pixels = (pixels * (contrast * gain)).add_(mean * (1 - contrast) * gain + offset)
    # eight noise fields are shared by all views: one per view would take longer than everything else here
    noise = torch.from_numpy(rng.standard_normal((8, *pixels.shape[1:]), dtype=np.float32))
    noise = noise[torch.from_numpy(rng.integers(len(noise), size=b))]
    return pixels.addcmul_(noise, uniform(config.noise / 2, config.noise / 2, 1)).clamp_(-1, 1)


def paste_patch(
    view: ndarray, box: Box, source: ndarray, source_box: Box, light_match: float = 0.0, occluded: ndarray | None = None
) -> ndarray:
    """Copy a view with the content of another view's box pasted into a box, with soft, round corners.

    Args:
        view, source: [100, 150, 3] uint8.
        box, source_box: x1, y1, x2, y2 in pixels of `view` and of `source`; `box` may lie across the view's border.
        light_match: share of the difference in light between the two places that is applied to the patch, 0 to 1.
        occluded: [100, 150] bool, pixels of `view` that stay as they are.
    """
    (u1, v1, u2, v2), (x1, y1, x2, y2) = source_box, box
    width, height = x2 + 1 - x1, y2 + 1 - y1
    left, top, right, bottom = clip_box(box, view.shape[:2])
    place = slice(top, bottom + 1), slice(left, right + 1)
    inside = slice(top - y1, bottom + 1 - y1), slice(left - x1, right + 1 - x1)
    view = view.copy()
    target = view[place]
    patch = Image.fromarray(source[v1 : v2 + 1, u1 : u2 + 1]).resize((width, height), Image.Resampling.BILINEAR)
    patch = np.asarray(patch, dtype=np.float32)
    if light_match:
        gain = (_mean_light(view, box) / _mean_light(source, source_box)) ** light_match
        patch = np.minimum(patch * np.clip(gain, 1 / MAX_LIGHT_GAIN, MAX_LIGHT_GAIN), 255)
    y, x = (np.abs(np.linspace(-1, 1, n)) ** 4 for n in (height, width))
    alpha = np.clip((1.15 - y[:, None] - x[None]) / 0.3, 0, 1)[inside][..., None]
    if occluded is not None:
        alpha = alpha * ~occluded[place][..., None]
    target[:] = alpha * patch[inside] + (1 - alpha) * target
    return view


def _mean_light(view: ndarray, box: Box) -> ndarray:
    """Average the pixels of a box and of a ring around it: [3] float32, never 0."""
    x1, y1, x2, y2 = box
    ring = LIGHT_RING_PX
    around = view[max(0, y1 - ring) : y2 + 1 + ring, max(0, x1 - ring) : x2 + 1 + ring]
    return around.mean((0, 1), dtype=np.float32) + 8


def occlusion_mask(box: Box, shape: tuple[int, int]) -> ndarray:
    """Approximate the pixels that a kart covers, as a mask of a shape (rows, columns).

    These are its box without the sides of the upper part: the driver is narrower than the kart.
    """
    x1, y1, x2, y2 = box
    mask = np.zeros(shape, dtype=bool)
    waist, side = y1 + round(0.4 * (y2 - y1)), round(0.25 * (x2 - x1))
    mask[waist : y2 + 1, x1 : x2 + 1] = True
    mask[y1:waist, x1 + side : x2 + 1 - side] = True
    return mask


def visible_box(box: Box, occluded: ndarray) -> tuple[Box | None, float]:
    """Find the box around the visible part of a box (None if there is none), and the visible share of its pixels."""
    x1, y1, x2, y2 = box
    free = ~occluded[y1 : y2 + 1, x1 : x2 + 1]
    if not free.any():
        return None, 0.0
    rows, columns = (np.flatnonzero(free.any(axis)).tolist() for axis in (1, 0))
    return (x1 + columns[0], y1 + rows[0], x1 + columns[-1], y1 + rows[-1]), float(free.mean())


def clip_box(box: Box, shape: tuple[int, int]) -> Box:
    """Return the part of a box that lies in an image of a shape (rows, columns)."""
    (x1, y1, x2, y2), (rows, columns) = box, shape
    return max(0, x1), max(0, y1), min(columns - 1, x2), min(rows - 1, y2)


def has_overlap(a: Box, b: Box) -> bool:
    """Check whether two boxes share a pixel."""
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def short_side(box: Box) -> int:
    """Return the shorter side of a box."""
    return min(box[2] - box[0], box[3] - box[1])


def aspect_mismatch(source: Box, target: Box) -> float:
    """Measure how much pasting distorts and enlarges the content of a box; 0 for the same shape, not enlarged."""
    x, y = (np.log((target[i + 2] - target[i]) / (source[i + 2] - source[i])) for i in (0, 1))
    return abs(x - y) + max(0.0, x + y) / 2
