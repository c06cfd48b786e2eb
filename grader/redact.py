"""Write the data that a bundle may read: images and questions of the evaluation, without answers."""

import hashlib
import json
import random
import shutil
from pathlib import Path, PurePosixPath

from homework.labels.eval_sets import MC_FILE, QA_FILE
from homework.labels.rows import MultiChoiceQADataset, VQADataset
from homework.utils.errors import InputError
from homework.utils.io import write_json

from .worker import EVAL_SPLIT

DATASETS = {"vlm": VQADataset, "clip": MultiChoiceQADataset}
EVAL_FILES = {"vlm": f"{EVAL_SPLIT}/{QA_FILE}", "clip": f"{EVAL_SPLIT}/{MC_FILE}"}  # in a data folder

Truth = dict[str, list[dict]]


def read_truth(data_dir: Path) -> Truth:
    """Read the evaluation rows of each part, right answers included.

    Raises:
        InputError: the data is missing or broken.
    """
    truth = {part: list(dataset(EVAL_SPLIT, data_dir)) for part, dataset in DATASETS.items()}
    for row in (row for rows in truth.values() for row in rows):
        path = PurePosixPath(row["image_file"])
        if path.is_absolute() or ".." in path.parts:
            problem = f"{row['image_file']} is not inside the data folder"
            raise InputError(data_dir / EVAL_SPLIT, problem, "correct the path in the annotation file")
        if not Path(row["image_path"]).is_file():
            raise InputError(row["image_path"], "no such image", "restore it; the evaluation needs it")
    return truth


def digest_truth(truth: Truth) -> str:
    """Return the SHA-256 of questions, images and right answers, wherever the data lies."""
    digest = hashlib.sha256()
    for row in (row for rows in truth.values() for row in rows):
        digest.update(json.dumps({**row, "image_path": None}, sort_keys=True).encode())
        digest.update(Path(row["image_path"]).read_bytes())
    return digest.hexdigest()


def write_redacted_data(truth: Truth, target: Path) -> None:
    """Write a data folder for a bundle: the images, and rows and candidates shuffled, with blank answers.

    The seed is the same in each run, so that a bundle's score is reproducible: batched inference may give other
    answers in another order. It depends on the right answers, so that no bundle can undo the shuffling.
    """
    rng = random.Random(digest_truth(truth))
    pairs = [{"image_file": row["image_file"], "question": row["question"], "answer": ""} for row in truth["vlm"]]
    choices = []
    for row in truth["clip"]:
        candidates = rng.sample(row["candidates"], len(row["candidates"]))
        choices.append({"image_file": row["image_file"], "candidates": candidates, "correct_index": 0})
    for part, rows in (("vlm", pairs), ("clip", choices)):
        rng.shuffle(rows)
        write_json(target / EVAL_FILES[part], rows)
    for image, source in {row["image_file"]: row["image_path"] for rows in truth.values() for row in rows}.items():
        (target / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / image)
