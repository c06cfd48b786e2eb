"""Light, haze and blur at random, so that a model does not learn one picture of each track.

The course's frames come from an older release of the game, whose light and sharpness differ a little from track to
track. The ranges below cover those differences (`python -m supertux.compare` prints them).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

EXPOSURE = (0.75, 1.2)  # factor on all light
CONTRAST = (0.85, 1.1)  # exponent on values of 0 to 1
TINT = 0.06  # each colour's factor is 1 plus or minus this
HAZE = 0.25  # most of the haze's share at infinity
HAZE_DEPTH = (40.0, 160.0)  # metres after which 63 % of it is reached
BLUR = 0.7  # pixels of 150x100, the most


@dataclass(frozen=True)
class Look:
    """What the light and the air of one frame are like; the same for all its views."""

    exposure: float
    contrast: float
    tint: tuple[float, float, float]
    haze: float
    haze_depth: float
    blur: float

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
        )

    def apply(self, image: np.ndarray, distance: np.ndarray) -> Image.Image:
        """A view as it is stored.

        Args:
            image: [h, w, 3] uint8, as drawn.
            distance: [h, w] metres from the camera; inf for the sky.
        """
        light = (image / 255.0) ** self.contrast * self.exposure * np.asarray(self.tint)
        # haze has the colour of the sky and of what is far away
        far = light[distance > 100]
        colour = far.mean(0) if len(far) else light.mean((0, 1))
        share = self.haze * (1 - np.exp(-distance / self.haze_depth))[..., None]
        light = light * (1 - share) + colour * share
        view = Image.fromarray((np.clip(light, 0, 1) * 255).round().astype(np.uint8))
        return view.filter(ImageFilter.GaussianBlur(self.blur))
