"""The shipped sample is what it says, and comes into the data folder and out of it without mixing frames."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from homework.labels.eval_sets import verify
from homework.labels.frame_info import read_frame_info
from homework.labels.rows import image_file, info_files
from homework.labels.scene import VIEW_SIZE, build_scene
from homework.utils.errors import InputError
from homework.utils.io import read_json
from supertux import sample
from supertux.render.planner import KARTS, TRACKS
from supertux.sample import MARKER, SAMPLE, SPLITS, remove_sample, use_sample
from tests.conftest import write_frame


@pytest.fixture
def small_sample(tmp_path: Path, monkeypatch) -> Path:
    """A sample of one frame a split in place of the shipped one."""
    for split in SPLITS:
        write_frame(tmp_path / "sample" / split, "00000", "abyss")
    monkeypatch.setattr(sample, "SAMPLE", tmp_path / "sample")
    return tmp_path / "sample"


def test_the_sample_comes_into_an_empty_data_folder(small_sample: Path, tmp_path: Path, capsys):
    use_sample(data=tmp_path / "data")
    for split in SPLITS:
        names = {path.name for path in (small_sample / split).iterdir()}
        assert {path.name for path in (tmp_path / "data" / split).iterdir()} == names
    assert "sample" in capsys.readouterr().out


def test_frames_that_are_there_stay_alone(small_sample: Path, tmp_path: Path, capsys):
    write_frame(tmp_path / "data/valid", "00001", "hacienda")
    use_sample(data=tmp_path / "data")
    assert [path.name for path in info_files(tmp_path / "data/valid")] == ["00001_info.json"]
    assert not (tmp_path / "data/train").exists() and not (tmp_path / "data" / MARKER).exists()
    assert "nothing to copy" in capsys.readouterr().out


def test_a_copy_that_was_cut_short_goes_on(small_sample: Path, tmp_path: Path):
    use_sample(data=tmp_path / "data")
    (tmp_path / "data/valid_grader/00000_info.json").unlink()
    (tmp_path / "data/valid_grader").rename(tmp_path / "away")
    use_sample(data=tmp_path / "data")
    assert (tmp_path / "data/valid_grader/00000_info.json").exists()


def test_a_sample_with_a_part_missing_is_one_line(small_sample: Path, tmp_path: Path):
    (small_sample / "valid").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as error:
        use_sample(data=tmp_path / "data")
    assert str(small_sample / "valid") in str(error.value) and "git checkout sample" in str(error.value)


def test_the_sample_makes_room_for_other_frames_and_other_frames_never_do(small_sample: Path, tmp_path: Path):
    data = tmp_path / "data"
    use_sample(data=data)
    write_frame(data / "own", "00002", "scotland")
    remove_sample(data)
    assert sorted(path.name for path in data.iterdir()) == ["own"]
    write_frame(data / "train", "00001", "hacienda")
    remove_sample(data)
    assert (data / "train/00001_info.json").exists()


def shipped(split: str) -> list[tuple[Path, dict]]:
    """The frames of a shipped split, checked as every reader checks them."""
    return [(path, read_frame_info(path)) for path in info_files(SAMPLE / split)]


def test_every_kart_is_followed_on_every_track_for_as_many_frames():
    followed = Counter()
    for _, info in shipped("train"):
        followed.update((info["track"], info["karts"][view]) for view in range(len(info["detections"])))
    assert set(followed) == {(track, kart) for track in TRACKS for kart in KARTS}
    assert len(set(followed.values())) == 1
    assert followed.total() >= 4000


def test_train_and_valid_are_of_different_races():
    places = {
        split: {str(read_json(path)["location"]) for path in info_files(SAMPLE / split)} for split in ("train", "valid")
    }
    assert not places["train"] & places["valid"]
    assert sum(len(info["detections"]) for _, info in shipped("valid")) >= 400


def test_every_view_has_its_image_and_the_whole_is_small():
    for split in ("train", "valid"):
        for path, info in shipped(split):
            for view in range(len(info["detections"])):
                with Image.open(SAMPLE / image_file(path, view)) as image:
                    assert image.size == VIEW_SIZE
    assert (
        sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file() and ".cache" not in path.parts) < 25e6
    )


def test_the_karts_are_as_many_as_in_the_courses_frames():
    numbers = Counter()
    for path, info in shipped("train"):
        numbers.update(len(build_scene(info, view).karts) for view in range(len(info["detections"])))
        assert path.name.endswith("_info.json")
    assert 0.55 < numbers[1] / numbers.total() < 0.65
    assert max(numbers) >= 5


def test_the_evaluation_sets_are_true_by_the_label_rule(capsys):
    verify(data=SAMPLE)
    printed = capsys.readouterr().out
    assert "120 of 120 answers" in printed and "200 of 200 true captions" in printed
