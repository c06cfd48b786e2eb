"""Test the commands that fit and measure the explorer's score of unfamiliar pictures."""

import subprocess

import numpy as np
from PIL import Image

from benchmarks import familiarity
from benchmarks.familiarity import _distinct_pictures, collect, fit, measure
from tests.conftest import assert_one_line_error, write_frame

COMMANDS = (collect, fit, measure)


def save_picture(path, seed: int, size=(300, 200)) -> None:
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size).save(path, compress_level=0)


def test_a_picture_in_two_sizes_counts_once_and_icons_not(tmp_path):
    save_picture(tmp_path / "a" / "large.png", 0, (900, 600))
    save_picture(tmp_path / "a" / "other.png", 1)
    save_picture(tmp_path / "a" / "icon.png", 2, (100, 100))
    save_picture(tmp_path / "a" / "banner.png", 3, (900, 200))
    save_picture(tmp_path / "b" / "small.png", 0)
    found = [(source, picture.size) for source, picture in _distinct_pictures([tmp_path / "a", tmp_path / "b"])]
    assert found == [("a", (600, 400)), ("a", (300, 200))]


def test_error_rates_are_printed(tmp_path, call, monkeypatch):
    """Fit on a few frames, then count which of them and of the foreign pictures are taken for the other."""
    for split in ("train", "valid"):
        for number, track in enumerate(("lighthouse", "abyss", "scotland")):
            write_frame(tmp_path / split, f"{number:05x}", track, shift=number)
    monkeypatch.setattr("viewer.explorer.familiarity.STATISTICS", tmp_path / "statistics.npz")
    monkeypatch.setattr(familiarity, "FALSE_ALARM_RATE", 0.25)
    assert call(COMMANDS, "fit", "--data", tmp_path)[0] == 0
    arguments = ("measure", "--data", tmp_path, "--foreign", tmp_path / "foreign")
    assert_one_line_error(
        call(COMMANDS, *arguments), "no pictures in it; run `python -m benchmarks.familiarity collect`"
    )
    save_picture(tmp_path / "foreign" / "extremetuxracer-data-001.png", 4)
    status, out, _ = call(COMMANDS, *arguments)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 4, out
    assert "train, taken for foreign" in lines[0] and "22.2 %" in lines[0] and "of 9" in lines[0]
    assert "of another game" in lines[3] and "0.0 %" in lines[3]


def test_collect_keeps_what_exists_and_names_what_it_cannot_download(tmp_path, call, monkeypatch):
    assert_one_line_error(call(COMMANDS, "collect", "--output", tmp_path), "already exists")

    def fail(command, **_):
        raise subprocess.CalledProcessError(100, command)

    monkeypatch.setattr(subprocess, "run", fail)
    result = call(COMMANDS, "collect", "--output", tmp_path / "new")
    assert_one_line_error(result, "scikit-image: cannot download it")
    assert not (tmp_path / "new").exists()
