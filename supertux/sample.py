"""Make the sample data set of rendered frames that is in git, and unpack it into `data/`.

`train.tar` and `valid.tar` are WebDataset shards, one sample per frame: `00000.info.json`, `00000.00.jpg`, ...
"""

import io
import logging
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from homework.labels.eval_sets import balanced_pairs, build, multiple_choice, split_scenes
from homework.labels.rows import DATA_DIR, SAMPLE_MARKER, info_files
from homework.utils.errors import InputError, data_flag, resumable
from homework.utils.io import atomic_write, write_json
from homework.utils.progress import progress_bar

from .render.engines import check_installed
from .render.planner import KARTS, TRACKS, race_plans
from .render.renderer import draw_races, is_done

logger = logging.getLogger(__name__)

SAMPLE = Path(__file__).parents[1] / "sample"
SHARDS = ("train", "valid")
SPLITS = (*SHARDS, "valid_grader", "train_demo")
MARKER = SAMPLE_MARKER
UNPACKING = ".unpacking"  # in a data folder: files of an unfinished `download`
# 16 karts in two races of 8: in train the camera follows every kart on every track in equally many frames.
KARTS_PER_RACE = 8
FRAMES_PER_RACE = {"train": 13, "valid": 4}
RACES_PER_TRACK = {"train": 2, "valid": 1}
SEEDS = {"train": 2024, "valid": 2025}
JPEG_QUALITY = 80  # keeps the sample under 25 MB


@resumable()
def make_sample(*, output: Path = SAMPLE, run_dir: Path = Path("runs/make_sample")) -> None:
    """Render the sample data set again: splits of different races, and the evaluation sets.

    Args:
        output: folder of the sample
        run_dir: folder for the rendered frames; if interrupted, the same command resumes
    """
    check_installed("hd")
    for split, frames in FRAMES_PER_RACE.items():
        count = len(TRACKS) * RACES_PER_TRACK[split] * frames
        options = {"num_karts": KARTS_PER_RACE, "frames_per_race": frames, "quality": JPEG_QUALITY}
        plans = list(race_plans(SEEDS[split], count, list(TRACKS), list(KARTS), "hd", **options))
        remaining = [plan for plan in plans if not is_done(plan, run_dir / split)]
        lost, unreadable = draw_races(remaining, run_dir / split)
        if lost or unreadable:
            raise InputError(run_dir / split, f"{lost} races and {unreadable} frames are lost", "run again")
        write_shard(run_dir / split, output / f"{split}.tar")
    build(split="valid", output=output / "valid_grader", data=run_dir)
    scenes = split_scenes(run_dir, "train")
    write_json(output / "train_demo/balanced_qa_pairs.json", balanced_pairs(scenes, 5, 0))
    true = [(row["image_file"], row["candidates"][row["correct_index"]]) for row in multiple_choice(scenes, 5, 0)]
    write_json(output / "train_demo/example_captions.json", [{"image_file": i, "caption": c} for i, c in true])


def write_shard(split_dir: Path, shard: Path) -> None:
    """Pack the frames of a split into a WebDataset shard; the same frames give the same bytes."""
    files = [file for info in info_files(split_dir) for file in split_dir.glob(f"{info.name.partition('_')[0]}_*")]
    members = {re.sub(r"_im\.jpg$", ".jpg", file.name).replace("_", "."): file for file in files}
    with atomic_write(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, file in sorted(members.items()):
            content, member = file.read_bytes(), tarfile.TarInfo(name)  # TarInfo sets owner and time to 0
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def sample_files(split: str) -> Iterator[tuple[str, bytes]]:
    """Yield (file name in the course's layout, content) of each file of a split of the sample."""
    try:
        if split not in SHARDS:
            yield from ((file.name, file.read_bytes()) for file in sorted((SAMPLE / split).iterdir()))
            return
        with tarfile.open(SAMPLE / f"{split}.tar") as archive:
            for member in archive:
                name = re.sub(r"\.(\d\d)\.jpg$", r"_\1_im.jpg", member.name).replace(".info.", "_info.")
                yield name, archive.extractfile(member).read()
    except FileNotFoundError as error:
        raise InputError(error.filename, "a part of the sample is missing", "run `git checkout sample`") from None


def unpack_split(split: str, folder: Path) -> None:
    """Write the files of a split of the sample into a folder that is there."""
    for name, content in progress_bar(sample_files(split), desc=f"unpacking {split}", unit="file", delay=1):
        (folder / name).write_bytes(content)


@resumable()
def use_sample(*, data: Path = DATA_DIR) -> None:
    """Unpack the sample data set into the data folder, unless that holds other frames.

    Args:
        data: the data folder
    """
    if (data / UNPACKING).exists():
        raise InputError(data, "an unfinished download is in it", "run the download again, or delete .unpacking in it")
    if not (data / MARKER).exists() and any(next((data / split).glob("[!.]*"), None) for split in SPLITS):
        beside = "`python -m supertux use-sample --data runs/sample` unpacks the sample beside them"
        logger.info(f"{data} has other frames: nothing to unpack; {beside}")
        return
    data.mkdir(parents=True, exist_ok=True)
    (data / MARKER).touch()
    # those that are there are complete: moved there by an earlier run
    missing = [split for split in SPLITS if not any((data / split).glob("[!.]*"))]
    for split in missing:
        with tempfile.TemporaryDirectory(dir=data) as folder:
            (target := Path(folder) / split).mkdir()
            unpack_split(split, target)
            for hidden in (data / split).glob(".*"):  # a folder that holds any cannot be replaced
                hidden.rename(target / hidden.name)
            target.rename(data / split)
    done = f"unpacked {', '.join(missing)}" if missing else "all there, nothing to unpack"
    download = f"`python -m supertux download{data_flag(data)}` replaces them by the course's"
    logger.info(f"{data}: the sample's frames, {done}; {download}")


def unchanged_sample_files(data: Path) -> set[str]:
    """Return which files of the sample a data folder holds with the same content: names relative to it."""
    if not (data / MARKER).exists():
        return set()
    files = ((f"{split}/{name}", content) for split in SPLITS for name, content in sample_files(split))
    return {name for name, content in files if (data / name).is_file() and (data / name).read_bytes() == content}
