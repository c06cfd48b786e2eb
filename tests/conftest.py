"""Provide fixtures for several test files: data folders, and commands run in this process."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image, ImageDraw

from homework import generate_captions, generate_qa
from homework.labels.frame_info import read_scenes
from homework.labels.questions import QUESTION_TYPES, captions, classify_question, qa_pairs
from homework.labels.rows import image_file, info_files
from homework.training.held_out import HELD_OUT_PERIOD
from homework.utils import cli
from homework.utils.io import write_json

pytest_plugins = ["tests.tiny_models"]

os.environ["MPLBACKEND"] = "agg"  # no windows, here and in the processes that tests start
settings.register_profile("tux", deadline=None, database=None)  # no deadline: the machine may be busy
settings.load_profile("tux")

KARTS = ("tux", "gnu", "nolok", "sara_the_racer", "xue")
COLOURS = ("black", "white", "red", "blue", "green")
TRACKS = {"lighthouse": "navy", "hacienda": "peru", "abyss": "teal", "zengarden": "olive", "scotland": "gray"}

# One row per view: boxes in pixels of the 150x100 view, the ego kart's first.
VIEWS = (
    ((60, 40, 90, 70), (20, 30, 40, 45)),
    ((62, 42, 88, 66),),
    ((61, 41, 89, 69), (100, 20, 120, 40), (10, 70, 40, 95)),
)


def write_frame(split_dir: Path, frame: str, track: str, shift: int = 0, views=VIEWS) -> Path:
    """Write a frame with its images: a rectangle of the kart's colour in each box.

    Args:
        shift: the ego kart of view v is kart (v + shift) of `KARTS`, and the karts after it are the others.
    """
    split_dir.mkdir(parents=True, exist_ok=True)
    detections = []
    for view, boxes in enumerate(views):
        image = Image.new("RGB", (150, 100), TRACKS[track])
        found = [[2, 0, 0, 200, 599, 399]]  # the track boundary, which the label rule ignores
        for number, box in enumerate(boxes):
            kart = (view + shift + number) % len(KARTS)
            ImageDraw.Draw(image).rectangle(box, fill=COLOURS[kart])
            found.append([1, kart, *(4 * side for side in box)])
        image.save(split_dir / f"{frame}_{view:02d}_im.jpg", quality=90)
        detections.append(found)
    info = {"track": track, "karts": list(KARTS), "detections": detections, "velocity": [1.0] * len(views)}
    path = split_dir / f"{frame}_info.json"
    path.write_text(json.dumps(info))
    return path


def rows_of(split_dir: Path, rows: Callable) -> list[dict]:
    """Return the rows of a whole split, in order."""
    views = ((path, view, scene) for path in info_files(split_dir) for view, scene in read_scenes(path))
    return [row for path, view, scene in views for row in rows(scene, image_file(path, view))]


def _write_pairs(split_dir: Path) -> None:
    write_json(split_dir / generate_qa.FILE_NAME, rows_of(split_dir, generate_qa.rows))
    write_json(split_dir / generate_captions.FILE_NAME, rows_of(split_dir, generate_captions.rows))


def _question_of_each_type(scene, image: str) -> list[dict]:
    pairs = list(qa_pairs(scene))
    chosen = [
        next(pair for pair in pairs if classify_question(pair[0]) == name and pair[1] != "0") for name in QUESTION_TYPES
    ]
    return [{"question": question, "answer": answer, "image_file": image} for question, answer in chosen]


def _multiple_choice(scene, image: str) -> dict:
    true = list(captions(scene))
    wrong = ["There are 9 karts in the scene.", "The track is minigolf.", "kiki is the ego car.", "The track is xr591."]
    place = len(true) % 5
    return {"image_file": image, "candidates": wrong[:place] + true[:1] + wrong[place:], "correct_index": place}


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """Make a data folder: train (3 frames of 3 views), valid (2 of 3), valid_grader and train_demo.

    The second view of the last train frame holds no kart.
    """
    data = tmp_path / "data"
    for number, track in enumerate(("lighthouse", "hacienda", "abyss")):
        views = VIEWS if number < 2 else (VIEWS[0], (), VIEWS[2])
        write_frame(data / "train", f"0000{number}", track, shift=number, views=views)
    for number, track in enumerate(("zengarden", "scotland")):
        write_frame(data / "valid", f"000a{number}", track, shift=number + 2)
    _write_pairs(data / "train")
    _write_pairs(data / "valid")
    for split, source, names in (
        ("valid_grader", "valid", ("balanced_qa_pairs.json", None)),
        ("train_demo", "train", ("balanced_qa_pairs.json", "example_captions.json")),
    ):
        path = info_files(data / source)[0]
        _, scene = read_scenes(path)[2]
        image = image_file(path, 2)
        write_json(data / split / names[0], _question_of_each_type(scene, image))
        if names[1]:
            write_json(data / split / names[1], list(generate_captions.rows(scene, image)))
    questions = rows_of(data / "valid", lambda scene, image: [_multiple_choice(scene, image)])
    write_json(data / "valid_grader" / "all_mc_qas.json", questions)
    return data


@pytest.fixture
def with_progress(tiny_data: Path) -> Path:
    """`tiny_data` with so many moments that some are held out, to measure progress on."""
    for number in range(HELD_OUT_PERIOD):
        write_frame(tiny_data / "train", f"001{number:02x}", "abyss", shift=number)
    return tiny_data


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory) -> Path:
    """Unpack the sample into a data folder, once per process. Tests must not write into it."""
    from supertux.sample import use_sample

    data = tmp_path_factory.mktemp("sample")
    use_sample(data=data)
    return data


@pytest.fixture
def small_sample(tmp_path: Path, monkeypatch) -> Path:
    """Put a sample of one frame per split in place of the shipped one."""
    from supertux import sample

    folder = tmp_path / "sample"
    for split in sample.SPLITS:
        write_frame(folder / split, "00000", "abyss")
        if split in sample.SHARDS:
            sample.write_shard(folder / split, folder / f"{split}.tar")
    monkeypatch.setattr(sample, "SAMPLE", folder)
    return folder


@pytest.fixture
def call(monkeypatch, capsys) -> Callable:
    """Return `call(functions, *arguments)`, which runs a command: -> (exit status, stdout, stderr)."""

    def call(functions, *arguments) -> tuple[int, str, str]:
        if len(functions) == 1:  # a single command is called without its name
            arguments = arguments[1:]
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.run(*functions)
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        # for sys.exit(message), the interpreter prints the message and exits with 1
        return (1, out, f"{err}{code}\n") if isinstance(code, str) else (code or 0, out, err)

    return call


def heed_ctrl_c() -> None:
    """Restore the default action of Ctrl-C in a child (`preexec_fn`): background processes ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def assert_one_line_error(result: tuple[int, str, str], name: str) -> None:
    """Check for exit status 1 and, beside progress bars, one line on stderr that contains `name`."""
    status, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1, err
    assert len(lines) == 1 and err.rstrip().endswith(lines[0]), err
    assert name in lines[0] and "Traceback" not in err
