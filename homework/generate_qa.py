"""Question-answer pairs: `check` shows those of one view, `generate` writes those of a whole split."""

import sys
from pathlib import Path

if not __package__:  # run as a script from inside homework/ (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "homework"

from .labels.generate import generate_annotations
from .labels.questions import generate_questions, qa_pairs
from .labels.rows import DATA_DIR, split_folder
from .labels.scene import Scene
from .utils.cli import run

FILE_NAME = "generated_qa_pairs.json"


def rows(scene: Scene, image_file: str) -> list[dict]:
    """The rows of a `*_qa_pairs.json` for one view."""
    return [
        {"question": question, "answer": answer, "image_file": image_file}
        for _, question, answer in generate_questions(scene)
    ]


def check(*, info_file: Path, view_index: int, output: Path | None = None) -> None:
    """Show a view, its boxes and its question-answer pairs.

    Args:
        info_file: the frame, e.g. data/valid/00000_info.json
        view_index: which view of it, from 0
        output: save the picture here instead of showing it
    """
    from .labels.visualize import show_view

    show_view(info_file, view_index, qa_pairs, "question-answer pairs", output)


def generate(*, split: str, data: Path = DATA_DIR) -> None:
    """Write the question-answer pairs of all views of a split to its generated_qa_pairs.json.

    Args:
        split: folder of the data, e.g. train
        data: where the splits are
    """
    generate_annotations(split_folder(data, split), FILE_NAME, rows)


if __name__ == "__main__":
    run(check, generate)
