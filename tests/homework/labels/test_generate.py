"""`check` shows a view; `generate` writes the same bytes every time, or nothing."""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from homework import generate_captions, generate_qa
from homework.labels.frame_info import read_scenes
from homework.labels.generate import FRAMES_PER_TASK, generate_annotations
from homework.labels.rows import VQADataset, image_file, info_files
from homework.utils.errors import InputError
from tests.conftest import assert_one_line_error, rows_of, write_frame
from tests.crash.test_full_disk import why_no_mount

ROOT = Path(__file__).parents[3]
MODULES = (generate_qa, generate_captions)


@pytest.mark.parametrize("module", MODULES)
def test_bytes_do_not_depend_on_workers_and_equal_json_dumps(tmp_path: Path, module):
    split = tmp_path / "train"
    for number in range(2 * FRAMES_PER_TASK + 1):
        write_frame(split, f"{number:05x}", "abyss", shift=number)
    written = [generate_annotations(split, module.FILE_NAME, module.rows, workers).read_bytes() for workers in (1, 2)]
    rows = rows_of(split, module.rows)
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    assert written[0] == written[1] == ("[\n" + ",\n".join(lines) + "\n]\n").encode()
    assert len(rows) > 100 and json.loads(written[0]) == rows


def test_names_are_escaped(tmp_path: Path):
    path = write_frame(tmp_path / "train", "00000", "abyss")
    info = json.loads(path.read_text())
    info["track"] = 'a "b"\\ é\n'
    path.write_text(json.dumps(info))
    file = generate_annotations(tmp_path / "train", generate_qa.FILE_NAME, generate_qa.rows, 1)
    assert json.loads(file.read_bytes()) == rows_of(tmp_path / "train", generate_qa.rows)


def test_a_folder_name_that_is_not_utf8_is_refused(tmp_path: Path):
    split = tmp_path / os.fsdecode(b"tr\xff")
    write_frame(split, "00000", "abyss")
    with pytest.raises(InputError, match="not UTF-8; rename it"):
        generate_annotations(split, generate_qa.FILE_NAME, generate_qa.rows, 1)
    assert not (split / generate_qa.FILE_NAME).exists()


@pytest.mark.parametrize("module", MODULES)
def test_generate_replaces_the_file_and_logs_the_number_of_rows(tiny_data: Path, call, module):
    path = tiny_data / "train" / module.FILE_NAME
    rows = json.loads(path.read_text())
    path.write_text("old")
    status, out, _ = call((module.check, module.generate), "generate", "--split", "train", "--data", tiny_data)
    assert status == 0 and json.loads(path.read_text()) == rows
    assert f"{path}: {len(rows)} rows for 9 views in 3 frames" in out and "rows/s" in out


def test_generated_annotations_are_read_as_a_dataset(tiny_data: Path):
    generate_annotations(tiny_data / "valid", generate_qa.FILE_NAME, generate_qa.rows, 1)
    dataset = VQADataset("valid", tiny_data)
    (_, scene), *_ = read_scenes(info_files(tiny_data / "valid")[0])
    assert dataset[0]["image_file"] == image_file(tiny_data / "valid" / "000a0_info.json", 0)
    assert dataset[0]["answer"] == scene.ego.name


def _spoil(split: Path, detection: list) -> str:
    path = split / "00002_info.json"
    info = json.loads(path.read_text())
    info["detections"][1].append(detection)
    path.write_text(json.dumps(info))
    return path.name


BAD_INPUT = {
    "broken JSON": lambda split: (split / "00001_info.json").write_text("{") and "00001_info.json",
    "box of NaN": lambda split: _spoil(split, [1, 0, math.nan, 0, 9, 9]),
    "box off the image": lambda split: _spoil(split, [1, 0, 0, 0, 999, 9]),
    "kart not in the list": lambda split: _spoil(split, [1, 99, 0, 0, 9, 9]),
    "missing image": lambda split: (split / "00001_02_im.jpg").unlink() or "00001_02_im.jpg",
    "empty split": lambda split: [path.unlink() for path in split.glob("*_info.json")] and "train",
}


@pytest.mark.parametrize("spoil", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_the_old_file_stays(tiny_data: Path, call, spoil):
    split = tiny_data / "train"
    old = (split / generate_qa.FILE_NAME).read_bytes()
    name = spoil(split)
    before = set(os.listdir(split))
    result = call((generate_qa.check, generate_qa.generate), "generate", "--split", "train", "--data", tiny_data)
    assert_one_line_error(result, name)
    assert (split / generate_qa.FILE_NAME).read_bytes() == old
    assert set(os.listdir(split)) == before


@pytest.mark.parametrize("module", MODULES)
def test_output_is_a_folder_for_pairs_of_any_split(tiny_data: Path, tmp_path: Path, call, module):
    """`generate --output` writes what it would write into the data folder, and nothing there."""
    expected = {split: (tiny_data / split / module.FILE_NAME).read_bytes() for split in ("train", "valid")}
    for split in expected:
        (tiny_data / split / module.FILE_NAME).unlink()
    before = set(tiny_data.rglob("*"))
    for split in expected:
        flags = ("--split", split, "--data", tiny_data, "--output", tmp_path / "pairs")
        assert call((module.check, module.generate), "generate", *flags)[0] == 0
    written = {path.parent.name: json.loads(path.read_bytes()) for path in tmp_path.glob("pairs/*/*")}
    assert written == {split: json.loads(text) for split, text in expected.items()}
    assert set(tiny_data.rglob("*")) == before


def generate_in_namespace(data: Path, mount: str, *flags) -> tuple[int, str, str]:
    """Run `generate_qa generate` after a shell command in a mount namespace of its own."""
    if why_no_mount():
        pytest.skip(f"cannot mount; run as root or allow user namespaces: {why_no_mount()}")
    command = [sys.executable, "-m", "homework.generate_qa", "generate", "--split", "train", "--data", data, *flags]
    command = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_pairs_of_read_only_data(tiny_data: Path, tmp_path: Path):
    """The error names `--output`, which writes them."""
    mount = f"mount --bind {tiny_data} {tiny_data} && mount -o remount,ro,bind {tiny_data}"
    result = generate_in_namespace(tiny_data, mount)
    assert_one_line_error(result, str(tiny_data / "train" / generate_qa.FILE_NAME))
    assert result[2].endswith("; name another folder with --output\n")
    assert generate_in_namespace(tiny_data, mount, "--output", tmp_path / "pairs")[0] == 0
    assert len(json.loads((tmp_path / "pairs" / "train" / generate_qa.FILE_NAME).read_bytes()))


UNUSABLE = {
    "missing": ("mount -t tmpfs none /dev && touch /dev/null", "No such file or directory"),
    "full": ("mount -t tmpfs -o size=4k none /dev/shm && echo > /dev/shm/file", "No space left on device"),
    "read-only": ("mount -t tmpfs -o ro none /dev/shm", "Read-only file system"),
}


@pytest.mark.parametrize(("mount", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_shared_memory_is_named(tiny_data: Path, mount: str, reason: str):
    """Processes that share work keep their locks in /dev/shm; the files of the data are not at fault."""
    before = {file: file.stat().st_mtime_ns for file in tiny_data.rglob("*")}
    result = generate_in_namespace(tiny_data, mount)
    assert_one_line_error(result, f"error: /dev/shm: cannot be used for work in several processes ({reason}); free")
    assert {file: file.stat().st_mtime_ns for file in tiny_data.rglob("*") if file.is_file()}.items() <= before.items()


def test_a_missing_split_makes_no_folder(tiny_data: Path, call):
    result = call((generate_qa.check, generate_qa.generate), "generate", "--split", "nowhere", "--data", tiny_data)
    assert_one_line_error(result, "nowhere")
    assert not (tiny_data / "nowhere").exists()


@pytest.mark.parametrize("split", ["data/train", ".", ".."])
def test_a_split_is_a_folder_directly_in_the_data_folder(tiny_data: Path, call, split):
    """`image_file` in the annotations names one folder only."""
    flags = ("--split", split, "--data", tiny_data.parent if "/" in split else tiny_data)
    before = {file: file.stat().st_mtime_ns for file in tiny_data.rglob("*")}
    assert_one_line_error(call((generate_qa.check, generate_qa.generate), "generate", *flags), split)
    assert {file: file.stat().st_mtime_ns for file in tiny_data.rglob("*")} == before


@pytest.mark.parametrize("module", MODULES)
def test_check_prints_the_rows_and_saves_the_picture(tiny_data: Path, tmp_path: Path, call, module):
    info_file, picture = tiny_data / "valid" / "000a0_info.json", tmp_path / "picture.png"
    arguments = ("check", "--info_file", info_file, "--view_index", "2", "--output", picture)
    status, out, _ = call((module.check, module.generate), *arguments)
    rows = list(module.rows(read_scenes(info_file)[2][1], ""))
    assert status == 0 and f"saved to {picture}" in out
    for row in rows:
        assert " ".join(value for key, value in row.items() if key != "image_file") in out.splitlines()
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width > 1000


def test_pictures_without_a_window_have_a_name_for_each_split(tiny_data: Path, tmp_path: Path, call, monkeypatch):
    """And their folder is said, and how to choose another one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tiny_data / "valid/000a0_info.json").rename(tiny_data / "valid/00000_info.json")
    (tiny_data / "valid/000a0_00_im.jpg").rename(tiny_data / "valid/00000_00_im.jpg")
    for split in ("train", "valid"):
        arguments = ("--info_file", tiny_data / split / "00000_info.json", "--view_index", 0)
        _, out, _ = call((generate_qa.check, generate_qa.generate), "check", *arguments)
        picture = tmp_path / f"data_{split}_00000_00_question-answer_pairs.png"
        assert out.endswith(f"; --output FILE chooses where the picture is saved\nsaved to {picture}\n")
        assert picture.exists()


def test_check_opens_a_window_if_there_is_a_display(tiny_data: Path, call, monkeypatch):
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    shown = []
    plt.switch_backend("agg")
    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "tk")
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    arguments = ("--info_file", tiny_data / "valid" / "000a0_info.json", "--view_index", 0)
    status, out, _ = call((generate_qa.check, generate_qa.generate), "check", *arguments)
    assert status == 0 and len(shown) == 1 and "saved" not in out


@pytest.mark.parametrize("backend", ["TkAgg", "nonsense", "module://matplotlib_inline.backend_inline", "module://none"])
def test_check_saves_the_picture_with_any_matplotlib_backend(tiny_data: Path, tmp_path: Path, backend: str):
    """Jupyter sets MPLBACKEND for the commands that it starts, and there may be no display."""
    info_file = tiny_data / "valid" / "000a0_info.json"
    command = [sys.executable, "-m", "homework.generate_qa", "check", "--info_file", info_file, "--view_index", "0"]
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    environment |= {"MPLBACKEND": backend, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert Path(done.stdout.splitlines()[-1].removeprefix("saved to ")).parent == tmp_path


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--info_file", "valid/000a0_info.json", "--view_index", "3"), "000a0_info.json"),
        (("--info_file", "valid/000a0_info.json", "--view_index", "-1"), "000a0_info.json"),
        (("--info_file", "valid/0dead_info.json", "--view_index", "0"), "0dead_info.json"),
        (("--info_file", "valid/000a0_info.json", "--view_index", "0", "--output", "picture.xyz"), "picture.xyz"),
    ],
)
def test_check_of_a_missing_view_frame_or_format(tiny_data: Path, call, monkeypatch, arguments: tuple, name: str):
    monkeypatch.chdir(tiny_data)
    assert_one_line_error(call((generate_qa.check, generate_qa.generate), "check", *arguments), name)
    assert not (tiny_data / "picture.xyz").exists()


def test_check_of_a_truncated_image(tiny_data: Path, tmp_path: Path, call):
    path = tiny_data / "valid" / "000a0_00_im.jpg"
    path.write_bytes(path.read_bytes()[:400])
    info_file = tiny_data / "valid" / "000a0_info.json"
    arguments = ("--info_file", info_file, "--view_index", 0, "--output", tmp_path / "p.png")
    assert_one_line_error(call((generate_qa.check, generate_qa.generate), "check", *arguments), path.name)
    assert not (tmp_path / "p.png").exists()


def test_check_as_a_script_from_inside_the_package(tiny_data: Path):
    """Run the course's command. Without a display and `--output`, it prints the file of the picture."""
    info_file = os.path.relpath(tiny_data / "valid" / "000a0_info.json", ROOT / "homework")
    command = [sys.executable, "generate_qa.py", "check", "--info_file", info_file, "--view_index", "0"]
    environment = os.environ | {"TMPDIR": str(tiny_data)}
    done = subprocess.run(command, cwd=ROOT / "homework", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "What track is this? zengarden" in done.stdout.splitlines()
    assert Path(done.stdout.splitlines()[-1].removeprefix("saved to ")).stat().st_size > 10_000


def test_errors_of_a_real_command_line(tiny_data: Path):
    """Check exit status and streams of a real process."""
    (tiny_data / "train" / "00000_info.json").write_text("{")
    command = [sys.executable, "-m", "homework.generate_captions", "generate", "--split", "train", "--data", tiny_data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert_one_line_error((done.returncode, done.stdout, done.stderr), "00000_info.json")
