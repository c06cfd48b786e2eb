"""Read the files of a split: frames, images, and the rows of its annotation files."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..utils.errors import InputError, data_flag, file_not_found, split_not_found
from ..utils.io import read_json

logger = logging.getLogger(__name__)

JSON_TYPES = {
    **{dict: "an object", list: "a list", str: "a string", int: "an integer", float: "a decimal number"},
    **{bool: "true or false", type(None): "null"},
}

# beside the package, as the course's grader puts it; an installed package takes that of the working directory
_ROOT = Path(__file__).parents[2]
DATA_DIR = Path("data") if _ROOT.name in ("site-packages", "dist-packages") else _ROOT / "data"

GRADED_SPLIT = "valid_grader"
SAMPLE_MARKER = ".sample"  # in a data folder: its frames and annotations are those of the sample


def sample_note(data_dir: str | Path, split: str) -> str:
    """Return what to add to the name of an evaluation split that is the sample's: its scores are not official ones."""
    is_sample = split in ("valid", GRADED_SPLIT) and (Path(data_dir) / SAMPLE_MARKER).exists()
    return " (the sample's, not the official set)" if is_sample else ""


def check_not_eval_split(split: str) -> None:
    """Refuse to train on a split that models are evaluated on: its name starts with `valid`."""
    if Path(split).name.startswith("valid"):
        problem = "refusing to train on an evaluation split (name starts with 'valid')"
        raise InputError(split, problem, "choose a split with another name")


def add_image_paths(rows: Sequence[dict], data_dir: Path) -> list[dict]:
    """Return the rows with `image_path` added: `image_file` inside `data_dir`."""
    return [{**row, "image_path": str(data_dir / row["image_file"])} for row in rows]


def _type_problem(value, expected: type, content: str = "") -> str | None:
    """Return that a JSON value is of another type than the expected one, or None; `content` says more of that."""
    is_expected = type(value) is expected
    return None if is_expected else f"expected {JSON_TYPES[expected]}{content}, got {JSON_TYPES[type(value)]}"


class _AnnotationDataset(Sequence):
    """All rows of a split's annotation files that match `pattern`, with `image_path` added."""

    pattern: str
    fields: ClassVar[dict[str, type]]
    remedy: str  # if there are no rows

    def __init__(self, split: str, data_dir: str | Path | None = None, pairs_dir: str | Path | None = None):
        """Read the files of a split in `pairs_dir`, by default the data folder itself; a file may hold no rows.

        Raises:
            InputError: no files, no rows in them, or an invalid one.
        """
        data_dir = Path(data_dir or DATA_DIR)
        folder = Path(pairs_dir or data_dir) / split
        if not pairs_dir and not folder.is_dir():
            raise split_not_found(folder)
        files = sorted(path for path in folder.glob(self.pattern) if not path.name.startswith("."))
        self.split, self.rows = split, []
        for file in files:
            content = read_json(file)
            problem = _type_problem(content, list, " of rows")
            if not problem:
                problems = (f"row {i}: {found}" for i, row in enumerate(content) if (found := self._find_problem(row)))
                problem = next(problems, None)
            if problem:
                raise InputError(file, problem, "generate or restore the file")
            self.rows += add_image_paths(content, data_dir)
        if not self.rows:
            problem = f"the {self.pattern} in it hold no rows" if files else f"no {self.pattern} in it"
            flags = split + data_flag(data_dir) + (f" --output {pairs_dir}" if pairs_dir else "")
            raise InputError(folder, problem, self.remedy.format(flags))

    def _find_problem(self, row) -> str | None:
        """Return what is wrong with a row, or None."""
        if problem := _type_problem(row, dict):
            return problem
        for name, expected in self.fields.items():
            if name not in row:
                return f"no `{name}`"
            if problem := _type_problem(row[name], expected):
                return f"`{name}`: {problem}"
        return None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class VQADataset(_AnnotationDataset):
    """Rows of every `*_qa_pairs.json`: image_path, image_file, question, answer."""

    pattern = "*_qa_pairs.json"
    fields: ClassVar = {"image_file": str, "question": str, "answer": str}
    remedy = "run `python -m homework.generate_qa generate --split {}`"


class CaptionDataset(_AnnotationDataset):
    """Rows of every `*_captions.json`: image_path, image_file, caption."""

    pattern = "*_captions.json"
    fields: ClassVar = {"image_file": str, "caption": str}
    remedy = "run `python -m homework.generate_captions generate --split {}`"


class MultiChoiceQADataset(_AnnotationDataset):
    """Rows of every `*_mc_qas.json`: image_path, image_file, candidates, correct_index."""

    pattern = "*_mc_qas.json"
    fields: ClassVar = {"image_file": str, "candidates": list, "correct_index": int}
    remedy = "choose another split"

    def _find_problem(self, row) -> str | None:
        problem = super()._find_problem(row)
        if problem is None and not all(isinstance(candidate, str) for candidate in row["candidates"]):
            return "a candidate is not a string"
        if problem is None and not 0 <= row["correct_index"] < len(row["candidates"]):
            return f"{row['image_file']}: correct_index {row['correct_index']} is not an index of its candidates"
        return problem


def drop_rows_without_image(rows: Sequence[dict]) -> list[dict]:
    """Return the rows whose image exists: partial data sets come with all annotations.

    Raises:
        InputError: no image exists.
    """
    existing = {path for path in {row["image_path"] for row in rows} if os.path.exists(path)}  # Path.exists can raise
    kept = [row for row in rows if row["image_path"] in existing]
    if not kept:
        problem = "no such image; none of the images referenced by this split exist"
        raise file_not_found(rows[0]["image_path"], problem, "restore the image files")
    if len(kept) < len(rows):
        missing = next(row["image_path"] for row in rows if row["image_path"] not in existing)
        logger.info(f"dropped {len(rows) - len(kept)} of {len(rows)} rows without an image, e.g. {missing}")
    return kept


def info_files(split_dir: str | Path) -> list[Path]:
    """List the `*_info.json` of a split, sorted.

    Raises:
        InputError: the folder is missing or holds no frame.
    """
    split_dir = Path(split_dir)
    if not split_dir.is_dir():
        raise split_not_found(split_dir)
    names = (name for name in os.listdir(split_dir) if name.endswith("_info.json") and not name.startswith("."))
    files = [split_dir / name for name in sorted(names)]
    if not files:
        raise InputError(split_dir, "no *_info.json in it", "choose a split with frames, e.g. train or valid")
    return files


def split_folder(data_dir: str | Path, split: str) -> Path:
    """Return the folder of a split.

    Raises:
        InputError: `split` is a path instead of a name; `image_file` in annotations has room for one folder only.
    """
    if str(Path(split)) != Path(split).name or Path(split).name == "..":
        raise InputError(split, "not a folder name inside the data folder", "give the folder above it with --data")
    return Path(data_dir) / split


def image_file(info_path: str | Path, view_index: int) -> str:
    """Return the image of a view relative to `data/`, e.g. `train/00a00_03_im.jpg`."""
    folder, name = os.path.split(info_path)
    return f"{os.path.basename(folder)}/{name.removesuffix('_info.json')}_{view_index:02d}_im.jpg"


def parse_image_file(image_name: str) -> tuple[str, int]:
    """Return (`split/FFFFF`, view index) of an image file name; refuse any but `split/FFFFF_VV_im.jpg`."""
    match = re.fullmatch(r"(.*)_(\d\d)_im\.jpg", image_name, re.DOTALL)
    if not match:
        raise InputError(image_name, "not an image name (FFFFF_VV_im.jpg)", "rename or remove it")
    return match[1], int(match[2])
