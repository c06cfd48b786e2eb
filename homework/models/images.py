"""Turn image files into pixels: decoding, caching, cropping and normalising."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..labels.scene import VIEW_SIZE
from ..utils.errors import InputError
from ..utils.images import open_image
from ..utils.io import atomic_write, fingerprint
from ..utils.parallel import cancel_on_error
from ..utils.progress import progress_bar

CLIP_SIZE = 192  # the grader's crop
MEAN = STD = 0.5
MAX_CACHE_FILES = 6  # per data folder; that of the course's `train` has a gigabyte


def to_view_size(image: Image.Image | np.ndarray) -> np.ndarray:
    """Resize an RGB image of any size to [100, 150, 3] uint8."""
    if isinstance(image, np.ndarray) and image.shape[:2] == VIEW_SIZE[::-1]:
        return image
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return np.asarray(image if image.size == VIEW_SIZE else image.resize(VIEW_SIZE, Image.Resampling.LANCZOS))


def load_views(paths: Sequence[str | Path], cache_dir: str | Path | None = None) -> np.ndarray:
    """Read images as one array [n, 100, 150, 3] uint8, decoded once and memory-mapped from then on.

    The cache's name is a digest of every file's path, size and modification time, so a changed image is decoded again;
    the `MAX_CACHE_FILES` used last are kept. Where the cache cannot be written, the array stays in memory.
    """
    digest = _digest(paths)  # raises for a missing file even without a cache
    file = Path(cache_dir) / f"views-{digest}.npy" if cache_dir else None
    shape = (len(paths), VIEW_SIZE[1], VIEW_SIZE[0], 3)
    cached = _cached(file, shape) if file else None
    if cached is not None:
        return cached
    views = np.empty(shape, dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool, cancel_on_error(pool):
        decoded = pool.map(lambda path: to_view_size(open_image(path)), paths)
        for index, view in enumerate(progress_bar(decoded, total=len(paths), desc="reading views", unit="view")):
            views[index] = view
    if not file:
        return views
    try:
        with atomic_write(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, views)
    except OSError:
        return views
    with contextlib.suppress(OSError):  # some systems cannot delete an open file
        for old in sorted(file.parent.glob("views-*.npy"), key=lambda one: -one.stat().st_mtime)[MAX_CACHE_FILES:]:
            old.unlink()
    return np.load(file, mmap_mode="r")


def _cached(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the cached array, or None if it is missing or broken."""
    try:
        views = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # the caches used last are kept
    return views if views.shape == shape and views.dtype == np.uint8 else None


def _digest(paths: Sequence[str | Path]) -> str:
    parts = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            raise InputError(path, "no such image", "check `image_file`, or restore the file") from None
        parts.append(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}")
    return fingerprint(parts)


def normalise(pixels: np.ndarray | Tensor) -> Tensor:
    """Scale uint8 [..., h, w, 3] to [0, 1] and normalise by mean and deviation 0.5: float32 [..., 3, h, w]."""
    pixels = torch.as_tensor(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    return pixels.movedim(-1, -3).float().div_(255).sub_(MEAN).div_(STD)


def clip_pixels(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """Apply the grader's transform: short side to 192 (bilinear), centre crop, normalise. [n, 3, 192, 192]"""
    crops = np.empty((len(images), CLIP_SIZE, CLIP_SIZE, 3), dtype=np.uint8)
    for crop, image in zip(crops, images, strict=True):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        width, height = image.size
        # torchvision's Resize truncates the long side; its CenterCrop rounds the offset
        width, height = (int(CLIP_SIZE * side / min(image.size)) for side in (width, height))
        left, top = round((width - CLIP_SIZE) / 2), round((height - CLIP_SIZE) / 2)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        crop[:] = image.crop((left, top, left + CLIP_SIZE, top + CLIP_SIZE))
    return normalise(crops)
