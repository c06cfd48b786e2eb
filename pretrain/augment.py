"""How a view is changed as a whole before the tower learns from it: a part of it for all, light, colour and noise."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homework.labels.scene import DETECTION_SIZE, KART_CLASS, VIEW_SIZE

from .annotated_scene import Seen, seen

MAX_ZOOM = 1.25  # how much larger a part of a view gets at most


def random_window(rng: np.random.Generator) -> tuple[float, float, float]:
    """A part of a view of the view's shape: left, top, width, in pixels of the 150x100 view."""
    width = VIEW_SIZE[0] / rng.uniform(1, MAX_ZOOM)
    height = width * VIEW_SIZE[1] / VIEW_SIZE[0]
    return rng.uniform(0, VIEW_SIZE[0] - width), rng.uniform(0, VIEW_SIZE[1] - height), width


def zoomed(view: np.ndarray, info: dict, number: int, window: tuple[float, float, float]) -> tuple[np.ndarray, Seen]:
    """A part of a view as a view of its own, and the scene in it by the label rule.

    Args:
        view: [100, 150, 3] uint8.
        info, number: the frame's info and which of its views this is.
        window: see `random_window`.
    """
    left, top, width = window
    part = (left, top, left + width, top + width * VIEW_SIZE[1] / VIEW_SIZE[0])
    image = Image.fromarray(view).resize(VIEW_SIZE, Image.Resampling.BILINEAR, box=part)
    corner = np.array([left, top] * 2) * (DETECTION_SIZE[0] / VIEW_SIZE[0])
    detections = []
    for class_id, track_id, *box in info["detections"][number]:
        boxed = np.clip((np.array(box) - corner) * VIEW_SIZE[0] / width, 0, DETECTION_SIZE * 2)
        if class_id == KART_CLASS:
            detections.append([class_id, track_id, *boxed.tolist()])
    return np.asarray(image), seen(info | {"detections": [detections]}, 0)


def jitter(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Random gain a channel, offset, contrast and noise a view; on normalised pixels [b, 3, h, w]."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    mean, contrast = pixels.mean((2, 3), keepdim=True), uniform(0.7, 1.3, b, 1, 1, 1)
    gain, offset = uniform(0.85, 1.15, b, 3, 1, 1), uniform(-0.2, 0.2, b, 1, 1, 1)
    pixels = (pixels * (contrast * gain)).add_(mean * (1 - contrast) * gain + offset)
    # a few fields of noise for all views: drawing one each would take longer than all the rest
    noise = torch.from_numpy(rng.standard_normal((8, *pixels.shape[1:]), dtype=np.float32))
    noise = noise[torch.from_numpy(rng.integers(len(noise), size=b))]
    return pixels.addcmul_(noise, uniform(0, 0.04, b, 1, 1, 1)).clamp_(-1, 1)
