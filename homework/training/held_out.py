"""The part of a split that no training uses: progress is measured on it, so that `valid` is left for the end."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from ..labels.duplicates import moments_of_split
from ..labels.frame_info import read_scenes
from ..labels.rows import add_image_paths, image_file
from ..utils.errors import InputError

logger = logging.getLogger(__name__)

HELD_OUT_PERIOD = 20  # every so many-th moment is held out; `pretrain` leaves out the same ones


def held_out_frames(data_dir: Path, split: str) -> set[str]:
    """Return the frames, e.g. `train/00a00`, of a split's held-out moments; none of a split of a few moments.

    A split without frames, such as `train_demo`, has its images in `train`.
    """
    folder = data_dir / split
    try:
        moments = moments_of_split(folder if any(folder.glob("*_info.json")) else data_dir / "train")
    except InputError:
        return set()  # images without frames
    numbers = {moment: number for number, moment in enumerate(dict.fromkeys(moments.values()))}
    if len(numbers) < HELD_OUT_PERIOD:
        return set()
    return {frame for frame, moment in moments.items() if numbers[moment] % HELD_OUT_PERIOD == 0}


def drop_held_out(rows: Sequence[dict], data_dir: Path, split: str) -> list[dict]:
    """Return the rows whose image is not held out; those of images with other names stay."""
    frames = held_out_frames(data_dir, split)
    return [row for row in rows if row["image_file"].rpartition("_im.jpg")[0][:-3] not in frames]


def progress_rows(make: Callable[[dict, int, int], list[dict]], count: int, data_dir: Path, split: str) -> list[dict]:
    """Return questions about what `drop_held_out` leaves out; none, with a message, if that is too little.

    Args:
        make: `balanced_pairs` or `multiple_choice` of `eval_sets`.
        count: how many rows, at most; of a small split there are fewer.
    """
    infos = [data_dir / f"{frame}_info.json" for frame in sorted(held_out_frames(data_dir, split))]
    if not infos:
        logger.info(f"no evaluation while training: {split} has fewer than {HELD_OUT_PERIOD} moments")
        return []
    scenes = {image_file(info, view): scene for info in infos for view, scene in read_scenes(info)}
    try:
        # a question takes a view for itself, and some types fit few views
        return add_image_paths(make(scenes, min(count, len(scenes) // 2), 1), data_dir)
    except InputError as error:
        logger.info(f"no evaluation while training: {error}")
        return []
