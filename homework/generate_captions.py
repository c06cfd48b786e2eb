"""Generate captions: `check` shows those of one view, `generate` writes a split's."""

import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:  # run as a script from inside homework/ (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "homework"

from .labels.questions import captions
from .labels.rows import DATA_DIR, split_folder
from .labels.scene import Scene
from .utils.cli import run

FILE_NAME = "generated_captions.json"


def rows(scene: Scene, image_file: str) -> Iterator[dict]:
    """Build the rows of a `*_captions.json` for one view."""
    for caption in captions(scene):
        yield {"image_file": image_file, "caption": caption}


def check(*, info_file: Path, view_index: int, output: Path | None = None) -> None:
    """Show a view, its boxes and its captions.

    Args:
        info_file: the frame's file, e.g. data/valid/00000_info.json
        view_index: the index of the view, from 0
        output: file to save the picture to instead of showing it
    """
    from .labels.visualize import show_view

    show_view(info_file, view_index, lambda scene: ((caption, "") for caption in captions(scene)), "captions", output)


def generate(*, split: str, data: Path = DATA_DIR, output: Path | None = None) -> None:
    """Write the captions of all views of a split to its generated_captions.json.

    Args:
        split: the split to caption, e.g. train
        data: the folder of the splits
        output: folder for SPLIT/generated_captions.json instead of the data folder, e.g. for `train --pairs`
    """
    from .labels.generate import generate_annotations

    generate_annotations(split_folder(data, split), FILE_NAME, rows, output_dir=output)


if __name__ == "__main__":
    run(check, generate)
