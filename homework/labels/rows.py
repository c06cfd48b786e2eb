"""The files of a split: its frames, its images, and the rows of its annotation files."""

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from ..utils.errors import InputError, split_not_found
from ..utils.io import read_json

logger = logging.getLogger(__name__)

DATA_DIR = Path(__file__).parents[2] / "data"

# One command a kind of file that can be made from the frames.
_MAKERS = {"qa_pairs": "generate_qa", "captions": "generate_captions"}


def check_not_eval_split(split: str) -> None:
    """Keep what a model is measured on out of its training.

    Raises:
        InputError: the split's name begins with `valid`.
    """
    if Path(split).name.startswith("valid"):
        raise InputError(split, "a split to measure on, not to train on", "train on a split not named valid...")


def add_image_paths(rows: Sequence[dict], data_dir: Path) -> list[dict]:
    """The rows with `image_path` added: where their `image_file` lies."""
    return [{**row, "image_path": str(data_dir / row["image_file"])} for row in rows]


class _Rows(Sequence):
    """All rows of a split's files that match `pattern`, each with `image_path` added."""

    pattern: str
    fields: ClassVar[dict[str, type]]

    def __init__(self, split: str, data_dir: str | Path | None = None):
        """Read the files.

        Raises:
            InputError: no such split or file, or a row that lacks something; it names the file.
        """
        data_dir = Path(data_dir or DATA_DIR)
        folder = data_dir / split
        if not folder.is_dir():
            raise split_not_found(folder, "no such split")
        files = sorted(folder.glob(self.pattern))
        if not files:
            maker = next((m for name, m in _MAKERS.items() if name in self.pattern), None)
            remedy = f"run `python -m homework.{maker} generate --split {split}`" if maker else "take another split"
            raise InputError(folder, f"no {self.pattern} in it", remedy)
        self.split, self.rows = split, []
        for file in files:
            content = read_json(file)
            if not isinstance(content, list) or not content:
                raise InputError(file, "expected a list of rows", "make the file again")
            for number, row in enumerate(content):
                problem = self._problem(row)
                if problem:
                    raise InputError(file, f"row {number} {problem}", "make the file again")
            self.rows += add_image_paths(content, data_dir)

    def _problem(self, row) -> str | None:
        if not isinstance(row, dict) or any(not isinstance(row.get(k), t) for k, t in self.fields.items()):
            return f"lacks one of {', '.join(self.fields)}"
        return None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class VQADataset(_Rows):
    """Rows of every `*_qa_pairs.json`: image_path, image_file, question, answer."""

    pattern = "*_qa_pairs.json"
    fields: ClassVar = {"image_file": str, "question": str, "answer": str}


class CaptionDataset(_Rows):
    """Rows of every `*_captions.json`: image_path, image_file, caption."""

    pattern = "*_captions.json"
    fields: ClassVar = {"image_file": str, "caption": str}


class MultiChoiceQADataset(_Rows):
    """Rows of every `*_mc_qas.json`: image_path, image_file, candidates, correct_index."""

    pattern = "*_mc_qas.json"
    fields: ClassVar = {"image_file": str, "candidates": list, "correct_index": int}

    def _problem(self, row) -> str | None:
        problem = super()._problem(row)
        if problem is None and not all(isinstance(candidate, str) for candidate in row["candidates"]):
            return "has a candidate that is not a text"
        if problem is None and not 0 <= row["correct_index"] < len(row["candidates"]):
            return f"on {row['image_file']} has no true candidate"
        return problem


def drop_rows_without_image(rows: Sequence[dict]) -> list[dict]:
    """The rows whose image is there, and a line about the others: a part of a data set has pair files of the whole.

    Raises:
        InputError: no row's image is there.
    """
    there = {path for path in {row["image_path"] for row in rows} if os.path.exists(path)}  # Path.exists can raise
    kept = [row for row in rows if row["image_path"] in there]
    if not kept:
        raise InputError(rows[0]["image_path"], "no such image, nor that of any other pair", "restore the images")
    if len(kept) < len(rows):
        missing = next(row["image_path"] for row in rows if row["image_path"] not in there)
        logger.info(f"{len(rows) - len(kept)} of {len(rows)} pairs left out: no such image, e.g. {missing}")
    return kept


def info_files(split_dir: str | Path) -> list[Path]:
    """The `*_info.json` of a split, sorted.

    Raises:
        InputError: the folder is missing or holds no frame.
    """
    split_dir = Path(split_dir)
    if not split_dir.is_dir():
        raise split_not_found(split_dir, "no such folder")
    names = sorted(name for name in os.listdir(split_dir) if name.endswith("_info.json"))
    if not names:
        raise InputError(split_dir, "no *_info.json in it", "take a split with frames, as train or valid")
    return [split_dir / name for name in names]


def split_folder(data_dir: str | Path, split: str) -> Path:
    """A split's folder.

    Raises:
        InputError: not a name alone: `image_file` names the folder that a frame lies in, and no other above it.
    """
    if str(Path(split)) != Path(split).name or Path(split).name == "..":
        raise InputError(split, "a split is a folder of the data", "name the folder above it by --data")
    return Path(data_dir) / split


def image_file(info_path: str | Path, view_index: int) -> str:
    """The view's image relative to `data/`, e.g. `train/00a00_03_im.jpg`."""
    return f"{_image_stem(info_path)}_{view_index:02d}_im.jpg"


@lru_cache(maxsize=1)  # the views of a frame come one after the other
def _image_stem(info_path: str | Path) -> str:
    folder, name = os.path.split(info_path)
    return f"{os.path.basename(folder)}/{name.removesuffix('_info.json')}"


def parse_image_file(image_name: str) -> tuple[str, int]:
    """(`split/FFFFF`, view index) of an image file's name, the inverse of `image_file`.

    Raises:
        InputError: the name is not `.../FFFFF_VV_im.jpg`.
    """
    try:
        frame, view, end = image_name.rsplit("_", 2)
        if end != "im.jpg" or len(view) != 2 or not view.isdigit():
            raise ValueError
        return frame, int(view)
    except ValueError:
        raise InputError(image_name, "not a view's name (FFFFF_VV_im.jpg)", "rename or remove it") from None
