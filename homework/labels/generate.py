"""Generate an annotation file for a split on all cores; the bytes do not depend on their number."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import msgspec

from ..utils.errors import InputError
from ..utils.io import atomic_write, check_writable
from ..utils.parallel import cancel_on_error, process_pool
from ..utils.progress import progress_bar
from .frame_info import read_scenes
from .rows import image_file, info_files
from .scene import Scene

logger = logging.getLogger(__name__)

FRAMES_PER_TASK = 32  # few enough to balance the load, enough to hide the transfer between processes

RowsFn = Callable[[Scene, str], Iterable[dict]]
_ENCODER = msgspec.json.Encoder()


def _encode_frame(rows_fn: RowsFn, info_path: Path) -> tuple[bytes, int, list[str]]:
    """Return (JSON of the rows, one per line; number of rows; image file of each view); runs in a worker."""
    rows, images = [], []
    for view, scene in read_scenes(info_path):
        images.append(image_file(info_path, view))
        rows.extend(rows_fn(scene, images[-1]))
    try:
        lines = _ENCODER.encode_lines(rows)  # JSON strings contain no line breaks
    except UnicodeEncodeError:
        raise InputError(info_path, "its name or its folder's is not UTF-8", "rename it") from None
    return lines.removesuffix(b"\n").replace(b"\n", b",\n"), len(rows), images


def generate_annotations(
    split_dir: Path, name: str, rows_fn: RowsFn, num_workers: int | None = None, output_dir: Path | None = None
) -> Path:
    """Write the annotation rows of all views of a split to a file, one per line, and return its path.

    Args:
        name: of the file.
        rows_fn: returns the rows of a scene, given its image file; must be picklable.
        num_workers: number of processes; all cores by default.
        output_dir: folder for the file, in a folder of the split's name; by default `split_dir` itself.

    Raises:
        InputError: the split is missing, a frame is broken, a view has no image, or the file cannot be written.
    """
    start = time.perf_counter()
    frames = info_files(split_dir)
    file = (output_dir / split_dir.name if output_dir else split_dir) / name
    check_writable(file, remedy="name another folder with --output")
    # one directory listing is much faster than a file system call per image
    existing = {f"{split_dir.name}/{file}" for file in os.listdir(split_dir)}
    total_rows = total_views = 0
    # a terminal sends Ctrl-C to all processes; the parent stops the workers
    ignore_ctrl_c = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    with (
        atomic_write(file) as temporary,
        open(temporary, "wb") as stream,
        process_pool(num_workers, **ignore_ctrl_c) as pool,
        cancel_on_error(pool),
    ):
        encoded = pool.map(partial(_encode_frame, rows_fn), frames, chunksize=FRAMES_PER_TASK)
        for lines, num_rows, images in progress_bar(encoded, total=len(frames), desc="annotating", unit="frame"):
            if not existing.issuperset(images):
                missing = next(image for image in images if image not in existing)
                raise InputError(split_dir.parent / missing, "no such image", "restore it or delete its frame")
            if num_rows:
                stream.writelines((b",\n" if total_rows else b"[\n", lines))
            total_rows += num_rows
            total_views += len(images)
        stream.write(b"\n]\n" if total_rows else b"[]\n")
    seconds = time.perf_counter() - start
    logger.info(f"{file}: {total_rows:,} rows for {total_views:,} views in {len(frames):,} frames")
    logger.info(f"{seconds:.1f} s, {total_rows / seconds:,.0f} rows/s")
    return file
