"""Light, haze and sharpness at random, so that a model does not learn one picture of each track.

The course's frames come from an older release of the game, whose light and sharpness differ a little from track to
track. The ranges below cover those differences: measured on 21 tracks with this module switched off, the course's
frames have 0.92 to 1.12 of our brightness (5th to 95th percentile), 0.93 to 1.09 of a colour's share in it, and are
sharper by 5 to 10 %. No haze was found in them; a little keeps the distance from being a cue.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

EXPOSURE = (0.9, 1.12)  # factor on all light
CONTRAST = (0.94, 1.1)  # exponent on values of 0 to 1
TINT = 0.06  # each colour's factor is 1 plus or minus this
HAZE = 0.08  # most of the haze's share at infinity
HAZE_DEPTH = (40.0, 160.0)  # metres after which 63 % of it is reached
BLUR = 0.3  # pixels of 150x100, the most
SHARPEN = 25  # percent of an unsharp mask of radius 1, the most


@dataclass(frozen=True)
class Look:
    """What the light and the air of one frame are like; the same for all its views."""

    exposure: float
    contrast: float
    tint: tuple[float, float, float]
    haze: float
    haze_depth: float
    blur: float
    sharpen: float

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Look":
        """Drawn from the ranges above; half of the frames have no haze."""
        return cls(
            exposure=rng.uniform(*EXPOSURE),
            contrast=rng.uniform(*CONTRAST),
            tint=tuple(1 + rng.uniform(-TINT, TINT, 3)),
            haze=max(0.0, rng.uniform(-HAZE, HAZE)),
            haze_depth=rng.uniform(*HAZE_DEPTH),
            blur=rng.uniform(0, BLUR),
            sharpen=rng.uniform(0, SHARPEN),
        )

    @classmethod
    def as_drawn(cls, rng: np.random.Generator) -> "Look":
        """Light and air as the engine has them; only the sharpness varies."""
        return cls(1.0, 1.0, (1.0, 1.0, 1.0), 0.0, 1.0, rng.uniform(0, BLUR), rng.uniform(0, SHARPEN))

    def apply(self, image: np.ndarray, distance: np.ndarray | None) -> Image.Image:
        """A view as it is stored.

        Args:
            image: [h, w, 3] uint8, as drawn.
            distance: [h, w] metres from the camera; inf for the sky. Only haze needs it.
        """
        # a power for each of 256 values is cheaper than one for each pixel
        levels = (np.arange(256)[:, None] / 255.0) ** self.contrast * self.exposure * np.asarray(self.tint)
        light = levels[image, np.arange(3)]
        if self.haze:
            # haze has the colour of the sky and of what is far away
            far = light[distance > 100]
            colour = far.mean(0) if len(far) else light.mean((0, 1))
            share = self.haze * (1 - np.exp(-distance / self.haze_depth))[..., None]
            light = light * (1 - share) + colour * share
        view = Image.fromarray((np.clip(light, 0, 1) * 255).round().astype(np.uint8))
        mask = ImageFilter.UnsharpMask(1, round(self.sharpen), 0)
        return view.filter(ImageFilter.GaussianBlur(self.blur)).filter(mask)
