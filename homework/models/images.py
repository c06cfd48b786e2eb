"""Image files -> pixels. The only place that decodes, caches, crops and normalises images."""

import contextlib
import os
import warnings
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
MAX_CACHE_FILES = 6  # of views, a gigabyte for the course's `train`: as many as its splits and some of our own
# of what is wrong with a broken image the error says enough
warnings.filterwarnings("ignore", module=r"PIL\.")


def to_view_size(image: Image.Image | np.ndarray) -> np.ndarray:
    """Resize an RGB image, PIL or uint8 [h, w, 3], to a view, uint8 [100, 150, 3]."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.asarray(image if image.size == VIEW_SIZE else image.resize(VIEW_SIZE, Image.Resampling.LANCZOS))


def _view(path: str | Path) -> np.ndarray:
    return to_view_size(open_image(path))


def load_views(paths: Sequence[str | Path], cache_dir: str | Path | None = None) -> np.ndarray:
    """The views as one array [n, 100, 150, 3] of uint8, decoded once and then memory-mapped.

    The cache's name is a digest of every file's path, size and time of change, so a changed image is
    decoded again; `MAX_CACHE_FILES` are kept. Where the cache can't be written the array stays in memory.

    Raises:
        InputError: see `open_image`.
    """
    name = _digest(paths)
    file = Path(cache_dir) / f"views-{name}.npy" if cache_dir else None
    shape = (len(paths), VIEW_SIZE[1], VIEW_SIZE[0], 3)
    cached = _cached(file, shape) if file else None
    if cached is not None:
        return cached
    views = np.empty(shape, dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool, cancel_on_error(pool):
        for index, view in enumerate(
            progress_bar(pool.map(_view, paths), total=len(paths), desc="reading views", unit="view")
        ):
            views[index] = view
    if file:
        try:
            with atomic_write(file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, views)
        except OSError:
            return views
        _drop_old(file.parent)
        return np.load(file, mmap_mode="r")
    return views


def _drop_old(folder: Path) -> None:
    """Keep the caches that were used last: one of views that have changed since is never asked for again."""
    with contextlib.suppress(OSError):  # on some systems none that is open can be deleted
        for old in sorted(folder.glob("views-*.npy"), key=lambda file: -file.stat().st_mtime)[MAX_CACHE_FILES:]:
            old.unlink()


def _cached(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cache's array, or None: there is none, or it is broken, and is written again."""
    try:
        views = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # for `_drop_old`
    return views if views.shape == shape and views.dtype == np.uint8 else None


def _digest(paths: Sequence[str | Path]) -> str:
    told = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            raise InputError(path, "no such image", "check `image_file`, or restore the file") from None
        told.append(f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}")
    return fingerprint(told)


def normalise(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., h, w, 3] -> float32 [..., 3, h, w] with mean 0.5 and standard deviation 0.5."""
    pixels = torch.as_tensor(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
    return pixels.movedim(-1, -3).float().div_(255).sub_(MEAN).div_(STD)


def clip_pixels(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """The grader's transform: short side to 192 (bilinear), centre crop to 192x192, normalised.

    Returns:
        float32 [n, 3, 192, 192].
    """
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
