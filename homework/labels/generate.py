"""Frames -> a pair file: a whole split on all cores, the same bytes every time."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from ..utils.errors import InputError
from ..utils.io import atomic_write
from ..utils.progress import progress_bar
from .frame_info import read_scenes
from .rows import image_file, info_files
from .scene import Scene

logger = logging.getLogger(__name__)

CHUNK = 32  # frames a task: few enough to share out evenly, enough to hide the transfer

Rows = Callable[[Scene, str], Iterable[dict]]
_ENCODER = msgspec.json.Encoder()


def _chunk(rows: Rows, info_paths: list[Path]) -> tuple[bytes, int, list[str]]:
    """(the rows' JSON, one a line; how many; image file of each view) of a few frames; runs in a worker."""
    blocks, number, images = [], 0, []
    for path in info_paths:
        found = []
        for view, scene in read_scenes(path):
            images.append(image_file(path, view))
            found.extend(rows(scene, images[-1]))
        if found:
            try:
                lines = _ENCODER.encode_lines(found)  # a line break ends each, and in JSON's texts there is none
            except UnicodeEncodeError:
                raise InputError(path, "its name or its folder's is not UTF-8", "rename it") from None
            blocks.append(lines.removesuffix(b"\n").replace(b"\n", b",\n"))
            number += len(found)
    return b",\n".join(blocks), number, images


def _begin_worker() -> None:
    # Ctrl-C reaches every process of a terminal; the parent alone answers it
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunks(rows: Rows, frames: list[Path], workers: int | None) -> Iterator[tuple[bytes, int, list[str]]]:
    """`_chunk` of every frame, in the order of the frames, with a progress bar."""
    tasks = [frames[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]
    with (
        ProcessPoolExecutor(workers, initializer=_begin_worker) as pool,
        progress_bar(total=len(frames), desc="asking", unit="frame") as progress,
    ):
        for task, result in zip(tasks, pool.map(partial(_chunk, rows), tasks), strict=True):
            yield result
            progress.update(len(task))


def generate_annotations(split_dir: Path, name: str, rows: Rows, workers: int | None = None) -> Path:
    """Write the rows of all views of a split to `split_dir/name`, one a line, and print how many.

    Args:
        rows: the rows of a scene and its image file; a function that can be pickled.
        workers: processes; all cores by default.

    Raises:
        InputError: no such split, a broken frame, or a view without its image.
    """
    start = time.perf_counter()
    frames = info_files(split_dir)
    # one listing instead of a look at each file
    present = {f"{split_dir.name}/{file}" for file in os.listdir(split_dir)}
    num_pairs = num_views = 0
    with atomic_write(split_dir / name) as temporary, open(temporary, "wb") as stream:
        for lines, number, images in _chunks(rows, frames, workers):
            if not present.issuperset(images):
                missing = next(image for image in images if image not in present)
                raise InputError(split_dir.parent / missing, "no such image", "restore it or delete its frame")
            if number:
                stream.writelines((b",\n" if num_pairs else b"[\n", lines))
            num_pairs += number
            num_views += len(images)
        stream.write(b"\n]\n" if num_pairs else b"[]\n")
    seconds = time.perf_counter() - start
    logger.info(f"{split_dir / name}: {num_pairs:,} pairs of {num_views:,} views in {len(frames):,} frames")
    logger.info(f"{seconds:.1f} s, {num_pairs / seconds:,.0f} pairs/s")
    return split_dir / name
