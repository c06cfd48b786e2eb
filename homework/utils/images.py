"""Open image files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from .errors import InputError, file_not_found, first_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # for some of its other formats Pillow starts external programs


@contextlib.contextmanager
def open_checked(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file of any size for the block; only its header is decoded here.

    Raises:
        InputError: the file is missing or not an image, or the block finds that its data is corrupt.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise file_not_found(path, "no such image", "check the path, or restore the file") from None
    except Exception as error:  # decoders raise nearly anything on corrupt data
        problem = f"not a readable image ({first_line(error)})"
        raise InputError(path, problem, "restore or delete the file") from None


def open_image(path: str | Path) -> Image.Image:
    """Decode an image file of any size to RGB; raises what `open_checked` does."""
    with open_checked(path) as image:
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; of 16 bits it keeps the upper 8, which `convert` would clip."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")
