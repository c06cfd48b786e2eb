"""Open image files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .errors import InputError, first_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # of those that Pillow knows some start other programs


@contextlib.contextmanager
def open_checked(path: str | Path) -> Iterator[Image.Image]:
    """An image file of any size, for as long as it is read; so far its header alone.

    Raises:
        InputError: the file is missing or no image, or what is read of it is broken.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except FileNotFoundError:
        raise InputError(path, "no such image", "check `image_file`, or restore the file") from None
    except Exception as error:  # what a broken image makes of a decoder: nearly anything
        problem = f"not a readable image ({first_line(error)})"
        raise InputError(path, problem, "restore or delete the file") from None


def open_image(path: str | Path) -> Image.Image:
    """A decoded RGB image of any size.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    with open_checked(path) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; of 16 bits a pixel the upper ones count, where `convert` alone would clip."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")
