"""The public pipeline's way to make pairs: a plain loop. Beside `baseline.py`, since it needs no PyTorch, as ours."""

import gc
import json
from pathlib import Path

from homework.labels.generate import RowsFn
from homework.labels.rows import image_file, info_files
from homework.labels.scene import build_scene


def write_pairs(split_dir: Path, file: str, rows: RowsFn) -> None:
    """The question-answer pairs of a split by a plain loop that reads a frame's file again for each view.

    Args:
        rows: as `homework.labels.generate.generate_annotations`'s.
    """
    gc.set_threshold(700)  # Python's own: `homework` raises it, and no public pipeline does
    pairs = []
    for path in info_files(split_dir):
        for view in range(len(json.loads(path.read_text())["detections"])):
            pairs += rows(build_scene(json.loads(path.read_text()), view), image_file(path, view))
    Path(file).write_text(json.dumps(pairs, indent=2))
