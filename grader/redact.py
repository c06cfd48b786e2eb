"""The data that a bundle gets to see: the images it is asked about and the questions, without the answers."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from homework.labels.eval_sets import MC_FILE, QA_FILE
from homework.labels.rows import MultiChoiceQADataset, VQADataset
from homework.utils.errors import InputError
from homework.utils.io import write_json

from .runner import SPLIT

DATASETS = {"vlm": VQADataset, "clip": MultiChoiceQADataset}

Truth = dict[str, list[dict]]


def read_truth(data_dir: Path) -> Truth:
    """The rows of each part, right answers included.

    Raises:
        InputError: the data is missing or broken.
    """
    truth = {part: list(dataset(SPLIT, data_dir)) for part, dataset in DATASETS.items()}
    for row in (row for rows in truth.values() for row in rows):
        path = PurePosixPath(row["image_file"])
        if path.is_absolute() or ".." in path.parts:
            raise InputError(data_dir / SPLIT, f"{row['image_file']} leads out of the data", "make the file again")
        if not Path(row["image_path"]).is_file():
            raise InputError(row["image_path"], "no such image", "restore it; the evaluation asks about it")
    return truth


def write_asked(truth: Truth, target: Path) -> None:
    """A data folder with nothing but what is asked: rows and candidates shuffled, answers blank.

    The seed is fixed, so that a bundle gets the same score each time: a model that answers in batches may answer
    otherwise in another order. What it hides, the true candidate's place, no seed gives back.
    """
    rng = random.Random(0)
    pairs = [{"image_file": row["image_file"], "question": row["question"], "answer": ""} for row in truth["vlm"]]
    choices = [_blank_choice(row, rng) for row in truth["clip"]]
    for name, rows in ((QA_FILE, pairs), (MC_FILE, choices)):
        rng.shuffle(rows)
        write_json(target / SPLIT / name, rows)
    _copy_images([row for rows in truth.values() for row in rows], target)


def _blank_choice(row: dict, rng: random.Random) -> dict:
    candidates = rng.sample(row["candidates"], len(row["candidates"]))
    return {"image_file": row["image_file"], "candidates": candidates, "correct_index": 0}


def _copy_images(rows: Sequence[dict], target: Path) -> None:
    for image, source in {row["image_file"]: row["image_path"] for row in rows}.items():
        (target / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / image)
