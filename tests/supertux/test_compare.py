"""Statistics of synthetic images, matching of views by track position, and the picture."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from homework.utils.errors import InputError
from supertux.render import compare as module
from supertux.render.compare import (
    StoredView,
    compare,
    format_table,
    image_statistics,
    match_by_track_position,
    mean_statistics,
    save_picture,
    views_by_track,
)
from tests.conftest import assert_one_line_error

BRIGHTNESS, CONTRAST, RED, GREEN, BLUE, SHARPNESS = range(6)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, "PNG")  # lossless, whatever its name is
    return path


def flat(*colour: int) -> np.ndarray:
    return np.broadcast_to(np.array(colour), (100, 150, 3))


def noise(scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (100, 150, 1)).repeat(3, 2) * scale


def write_frame(folder: Path, frame: str, track: str, distances: list[float], pixels=None) -> Path:
    """A frame with a view for each kart but the last."""
    views = len(distances) - 1
    for view in range(views):
        save(folder / f"{frame}_{view:02d}_im.jpg", flat(80, 90, 100) if pixels is None else pixels)
    info = {"track": track, "karts": ["tux"] * len(distances), "detections": [[]] * views}
    path = folder / f"{frame}_info.json"
    path.write_text(json.dumps(info | {"distance_down_track": distances}))
    return path


def row_of(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).split()


def test_brightness_and_colours_are_means_from_0_to_1(tmp_path):
    got = image_statistics(save(tmp_path / "a.jpg", flat(255, 51, 0)))
    assert got[[RED, GREEN, BLUE]] == pytest.approx([1, 0.2, 0])
    assert got[BRIGHTNESS] == pytest.approx(0.299 + 0.587 * 0.2)
    assert got[[CONTRAST, SHARPNESS]] == pytest.approx([0, 0])


def test_sharpness_changes_with_blur_not_with_light_or_contrast(tmp_path):
    sharp = image_statistics(save(tmp_path / "a.jpg", noise()))
    dark = image_statistics(save(tmp_path / "b.jpg", noise(0.5) + 20))
    blurred = Image.fromarray(noise().astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
    soft = image_statistics(save(tmp_path / "c.jpg", np.asarray(blurred)))
    assert dark[CONTRAST] == pytest.approx(sharp[CONTRAST] / 2, rel=0.02)
    assert dark[SHARPNESS] == pytest.approx(sharp[SHARPNESS], rel=0.02)
    assert soft[SHARPNESS] < 0.6 * sharp[SHARPNESS]


def test_the_sample_of_a_track_is_the_same_each_time(tmp_path, monkeypatch):
    views = [StoredView(save(tmp_path / f"{n}.jpg", flat(n, n, n)), 0.0) for n in range(20)]
    monkeypatch.setattr(module, "MAX_VIEWS_PER_TRACK", 5)
    measured = []
    monkeypatch.setattr(module, "image_statistics", lambda path: measured.append(path) or np.zeros(6))
    mean_statistics(views)
    mean_statistics(views)
    assert len(measured) == 10 and measured[:5] == measured[5:] and len(set(measured)) == 5


def test_duplicate_frames_count_once(tmp_path):
    folder = tmp_path / "course"
    write_frame(folder, "00000", "abyss", [10.2, 20.1, 5])
    write_frame(folder, "00001", "abyss", [10.4, 19.9, 5])  # the same metres
    write_frame(folder, "00002", "xr591", [10.2, 20.1, 5])  # on another track
    write_frame(folder, "00003", "abyss", [11.2, 20.1, 5])
    views = views_by_track(folder)
    assert [view.image.name[:8] for view in views["abyss"]] == ["00000_00", "00000_01", "00003_00", "00003_01"]
    assert [view.distance for view in views["abyss"]] == [10.2, 20.1, 11.2, 20.1]
    assert len(views["xr591"]) == 2


@pytest.mark.parametrize("distances", [None, [1.0], 7])
def test_a_frame_without_distances_is_an_error(tmp_path, distances):
    path = write_frame(tmp_path, "00000", "abyss", [1.0, 2.0, 3.0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"distance_down_track": distances}))
    with pytest.raises(InputError, match="00000_info.json.*distance_down_track"):
        views_by_track(tmp_path)


def test_each_third_of_the_course_gives_its_closest_pair():
    course = [StoredView(Path(f"c{n}"), n) for n in (0, 10, 100, 110, 200, 210)]
    ours = [StoredView(Path(f"o{n}"), n) for n in (208, 12, 101)]
    pairs = [(a.image.name, b.image.name) for a, b in match_by_track_position(course, ours)]
    assert pairs == [("c10", "o12"), ("c100", "o101"), ("c210", "o208")]
    assert len(match_by_track_position(course, ours[:1])) == 1
    assert len(match_by_track_position(course[:2], ours)) == 2


def test_the_table_has_ratios_by_track_and_their_percentiles():
    table = np.ones((3, 2, 6))
    table[:, 1, BRIGHTNESS] = [1.0, 1.5, 2.0]
    text = "\n".join(format_table(["abyss", "scotland", "xr591"], table))
    assert row_of(text, "scotland")[:3] == ["1.000", "1.500", "1.50"]
    assert row_of(text, "scotland")[3:6] == ["1.000", "1.000", "1.00"]
    assert [row_of(text, percent)[0] for percent in ("10 ", "50 ", "90 ")] == ["1.10", "1.50", "1.90"]


def test_a_black_track_has_finite_ratios():
    assert "nan" not in "\n".join(format_table(["abyss"], np.zeros((1, 2, 6))))


def test_the_command_prints_ratios_and_saves_a_picture(tmp_path, capsys):
    for number in range(4):
        write_frame(tmp_path / "course", f"0000{number}", "abyss", [10.0 * number, 3, 5], flat(50, 50, 50))
        write_frame(tmp_path / "ours", f"0000{number}", "abyss", [10.0 * number, 3, 5], flat(100, 100, 100))
    write_frame(tmp_path / "ours", "00009", "xr591", [1, 2])  # not in the course's split
    compare(ours=tmp_path / "ours", course=tmp_path / "course", output=tmp_path / "docs/frames.jpg")
    text = capsys.readouterr().out
    assert row_of(text, "abyss")[:3] == ["0.196", "0.392", "2.00"]
    assert "xr591" not in text
    with Image.open(tmp_path / "docs/frames.jpg") as picture:
        assert picture.format == "JPEG"
        pixels = np.asarray(picture.convert("L"))
    left, right = pixels[60, 200], pixels[60, -200]  # the course's views and ours
    assert abs(int(left) - 50) < 5 and abs(int(right) - 100) < 5


def test_the_picture_stays_under_the_size_limit(tmp_path, monkeypatch):
    views = {"abyss": [StoredView(save(tmp_path / f"{n}.jpg", noise()), n) for n in range(3)]}
    monkeypatch.setattr(module, "MAX_BYTES", 60_000)
    save_picture(tmp_path / "frames.jpg", ["abyss"], views, views)
    assert (tmp_path / "frames.jpg").stat().st_size < 60_000


def test_folders_without_a_common_track_are_an_error(tmp_path):
    write_frame(tmp_path / "course", "00000", "abyss", [1, 2])
    write_frame(tmp_path / "ours", "00000", "xr591", [1, 2])
    with pytest.raises(InputError, match="no track in common"):
        compare(ours=tmp_path / "ours", course=tmp_path / "course", output=tmp_path / "frames.jpg")


def test_a_folder_without_frames_is_a_one_line_error(tmp_path, call):
    write_frame(tmp_path / "course", "00000", "abyss", [1, 2])
    (tmp_path / "empty").mkdir()
    arguments = ("--ours", tmp_path / "empty", "--course", tmp_path / "course", "--output", tmp_path / "frames.jpg")
    assert_one_line_error(call([compare], "compare", *arguments), "empty")
