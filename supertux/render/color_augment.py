"""Photometric jitter of drawn frames: random light and sharpness.

The legacy engine, which drew the course's frames, has slightly different light and sharpness on each track. The ranges
below cover those differences: without jitter, the course's frames have 0.92 to 1.12 of our brightness (5th to 95th
percentile over 21 tracks), 0.93 to 1.09 of a colour's share in it, and are sharper by 5 to 10 %.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

EXPOSURE_RANGE = (0.9, 1.12)  # factor on all light
CONTRAST_RANGE = (0.94, 1.1)  # exponent on values of 0 to 1
MAX_TINT = 0.06  # each colour's factor is 1 plus or minus this
MAX_BLUR_PX = 0.3  # pixels of 150x100
MAX_SHARPEN_PERCENT = 25  # of an unsharp mask of radius 1


@dataclass(frozen=True)
class PhotometricJitter:
    """The light and sharpness of one frame, the same for all its views."""

    exposure: float = 1.0
    contrast: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0
    sharpen: float = 0.0

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "PhotometricJitter":
        """Sample from the ranges above."""
        return cls(
            exposure=rng.uniform(*EXPOSURE_RANGE),
            contrast=rng.uniform(*CONTRAST_RANGE),
            tint=tuple(1 + rng.uniform(-MAX_TINT, MAX_TINT, 3)),
            blur=rng.uniform(0, MAX_BLUR_PX),
            sharpen=rng.uniform(0, MAX_SHARPEN_PERCENT),
        )

    @classmethod
    def sample_sharpness(cls, rng: np.random.Generator) -> "PhotometricJitter":
        """Sample the sharpness only; the light stays as drawn."""
        return cls(blur=rng.uniform(0, MAX_BLUR_PX), sharpen=rng.uniform(0, MAX_SHARPEN_PERCENT))

    def apply(self, image: np.ndarray) -> Image.Image:
        """Apply the jitter to an image [h, w, 3] uint8."""
        # a power for each of 256 values is cheaper than one for each pixel
        levels = (np.arange(256)[:, None] / 255.0) ** self.contrast * self.exposure * np.asarray(self.tint)
        levels = (np.clip(levels, 0, 1) * 255).round().astype(np.uint8)
        view = Image.fromarray(levels[image, np.arange(3)])
        mask = ImageFilter.UnsharpMask(1, round(self.sharpen), 0)
        return view.filter(ImageFilter.GaussianBlur(self.blur)).filter(mask)
