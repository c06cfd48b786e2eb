"""The small data set of our own frames that is in git: how it is made, and how it comes into `data/`."""

import logging
import shutil
import tempfile
from pathlib import Path

from homework.labels.eval_sets import balanced_pairs, build, multiple_choice, split_scenes
from homework.labels.rows import DATA_DIR
from homework.utils.errors import InputError
from homework.utils.io import write_json
from homework.utils.parallel import available_cores
from homework.utils.progress import progress_bar

from .render.engines.pystk2 import assets as art
from .render.planner import KARTS, TRACKS, race_plans
from .render.renderer import is_done, views_of, watch, with_processes

logger = logging.getLogger(__name__)

SAMPLE = Path(__file__).parents[1] / "sample"
SPLITS = ("train", "valid", "valid_grader", "train_demo")
MARKER = ".sample"  # in the data folder: these frames are the sample's
# Of 16 karts, two races of 8 have each once: in train every kart is followed on every track for as many frames.
KARTS_PER_RACE = 8
FRAMES = {"train": 13, "valid": 4}  # of each race
RACES = {"train": 2, "valid": 1}  # on each track
SEEDS = {"train": 2024, "valid": 2025}
QUALITY = 80  # of the JPEG files; all of it is to stay under 25 MB


def make_sample(*, out: Path = SAMPLE) -> None:
    """Draw the sample data set again: train and valid splits of different races, and the evaluation sets.

    Args:
        out: its folder
    """
    art.require_engine()
    art.installed()
    for split, frames in FRAMES.items():
        count = len(TRACKS) * RACES[split] * frames
        options = {"num_karts": KARTS_PER_RACE, "frames_per_race": frames, "quality": QUALITY}
        plans = list(race_plans(SEEDS[split], count, list(TRACKS), list(KARTS), "hd", **options))
        todo = [plan for plan in plans if not is_done(plan, out / split)]
        failed, missing = watch(with_processes(todo, out / split, available_cores()), sum(map(views_of, todo)))
        if failed or missing:
            problem = f"{failed} races lost, {missing} frames missing"
            raise InputError(out / split, problem, "run again, or take another seed")
    build(split="valid", output=out / "valid_grader", data=out)
    scenes = split_scenes(out, "train")
    write_json(out / "train_demo/balanced_qa_pairs.json", balanced_pairs(scenes, 5, 0))
    true = [(row["image_file"], row["candidates"][row["correct_index"]]) for row in multiple_choice(scenes, 5, 0)]
    write_json(out / "train_demo/example_captions.json", [{"image_file": i, "caption": c} for i, c in true])


def use_sample(*, data: Path = DATA_DIR) -> None:
    """Copy the sample data set into the data folder, unless frames are there.

    Args:
        data: the data folder
    """
    marked = (data / MARKER).exists()
    if not marked and any(next((data / split).glob("*"), None) for split in SPLITS):
        logger.info(f"{data} has frames: nothing to copy")
        return
    data.mkdir(parents=True, exist_ok=True)
    (data / MARKER).touch()
    for split in SPLITS:
        if not (SAMPLE / split).is_dir():
            raise InputError(SAMPLE / split, "a part of the sample is missing", "run `git checkout sample`")
        if not (data / split).exists():  # a copy that was cut short goes on here
            with tempfile.TemporaryDirectory(dir=data) as folder:
                _copy(SAMPLE / split, Path(folder) / split).rename(data / split)
    logger.info(f"{data}: the sample's frames; the course's take their place with `python -m supertux download`")


def _copy(source: Path, target: Path) -> Path:
    files = sum(path.is_file() for path in source.rglob("*"))
    with progress_bar(total=files, desc=f"copying {source.name}", unit="file", delay=1) as progress:

        def copy(*paths: str) -> None:
            shutil.copy2(*paths)
            progress.update()

        return shutil.copytree(source, target, copy_function=copy)


def remove_sample(data: Path) -> None:
    """Take the sample out of the data folder, where it is, so that no frame of it stays among others."""
    if not (data / MARKER).exists():
        return
    for split in SPLITS:
        shutil.rmtree(data / split, ignore_errors=True)
    (data / MARKER).unlink()
    logger.info(f"{data}: the sample's frames are removed, to make room for others")
