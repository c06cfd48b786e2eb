"""The shipped sample is as documented, and enters and leaves the data folder without mixing frames."""

import io
import json
import shutil
import tarfile
from collections import Counter, defaultdict
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
from supertux.sample import MARKER, SAMPLE, SHARDS, SPLITS, UNPACKING, unchanged_sample_files, use_sample, write_shard
from tests.conftest import write_frame


def test_the_sample_comes_into_an_empty_data_folder(small_sample: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", "supertux")
    use_sample(data=tmp_path / "data")
    for split in SPLITS:
        files = {path.name: path.read_bytes() for path in (small_sample / split).iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "data" / split).iterdir()} == files
    download = f"`python -m supertux download --data {tmp_path / 'data'}` replaces them by the course's"
    begin = f"{tmp_path / 'data'}: the sample's frames, "
    assert caplog.messages == [f"{begin}unpacked train, valid, valid_grader, train_demo; {download}"]
    use_sample(data=tmp_path / "data")
    assert caplog.messages[1] == f"{begin}all there, nothing to unpack; {download}"


def test_hidden_files_are_not_frames(small_sample: Path, tmp_path: Path):
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/.DS_Store").write_text("mine")
    use_sample(data=tmp_path / "data")
    assert (tmp_path / "data/train/00000_info.json").exists()
    assert (tmp_path / "data/train/.DS_Store").read_text() == "mine"


def test_other_frames_are_not_touched(small_sample: Path, tmp_path: Path, caplog):
    caplog.set_level("INFO", "supertux")
    write_frame(tmp_path / "data/valid", "00001", "hacienda")
    use_sample(data=tmp_path / "data")
    assert [path.name for path in info_files(tmp_path / "data/valid")] == ["00001_info.json"]
    assert not (tmp_path / "data/train").exists() and not (tmp_path / "data" / MARKER).exists()
    assert "has other frames: nothing to unpack; `python -m supertux use-sample --data runs/sample`" in caplog.text


def test_an_interrupted_run_is_resumed(small_sample: Path, tmp_path: Path):
    use_sample(data=tmp_path / "data")
    (tmp_path / "data/valid").rename(tmp_path / "away")
    use_sample(data=tmp_path / "data")
    assert (tmp_path / "data/valid/00000_info.json").exists()


@pytest.mark.parametrize("part", ["valid.tar", "valid_grader"])
def test_a_missing_part_of_the_sample_is_one_line(small_sample: Path, tmp_path: Path, part: str):
    (small_sample / part).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as error:
        use_sample(data=tmp_path / "data")
    assert str(small_sample / part) in str(error.value) and "git checkout sample" in str(error.value)


def test_an_unfinished_download_is_not_mixed_with_the_sample(small_sample: Path, tmp_path: Path):
    (tmp_path / "data" / UNPACKING).mkdir(parents=True)
    with pytest.raises(InputError, match="unfinished download"):
        use_sample(data=tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == [UNPACKING]


def test_only_unchanged_files_of_the_sample_are_its_own(small_sample: Path, tmp_path: Path):
    data = tmp_path / "data"
    assert unchanged_sample_files(data) == set()
    use_sample(data=data)
    (data / "valid/00000_info.json").write_text("{}")
    (data / "valid/00000_00_im.jpg").unlink()
    write_frame(data / "train", "00001", "scotland")
    names = {"00000_info.json", "00000_00_im.jpg", "00000_01_im.jpg", "00000_02_im.jpg"}
    expected = {f"{split}/{name}" for split in SPLITS for name in names}
    assert unchanged_sample_files(data) == expected - {"valid/00000_info.json", "valid/00000_00_im.jpg"}
    (data / MARKER).unlink()  # these frames are not the sample's
    assert unchanged_sample_files(data) == set()


@pytest.mark.parametrize("split", SHARDS)
def test_shards_follow_the_webdataset_convention(sample_data: Path, tmp_path: Path, split: str):
    """Members of one sample are adjacent; the key is the name up to the first dot, the rest is the field."""
    keys, samples = [], defaultdict(dict)
    with tarfile.open(SAMPLE / f"{split}.tar", "r:") as shard:
        for member in shard:
            assert member.isreg() and (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            key, _, field = member.name.partition(".")
            keys += [key] if key not in keys[-1:] else []
            samples[key][field] = shard.extractfile(member).read()
    assert keys == sorted(set(keys))
    assert keys == [path.name.removesuffix("_info.json") for path in info_files(sample_data / split)]
    for key, fields in samples.items():
        num_views = len(json.loads(fields.pop("info.json"))["detections"])
        assert sorted(fields) == [f"{view:02d}.jpg" for view in range(num_views)]
        path = sample_data / split / f"{key}_info.json"
        for view in range(num_views):
            assert (sample_data / image_file(path, view)).read_bytes() == fields[f"{view:02d}.jpg"]
        with Image.open(io.BytesIO(fields["00.jpg"])) as image:
            assert image.size == VIEW_SIZE
    write_shard(sample_data / split, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (SAMPLE / f"{split}.tar").read_bytes()


def read_frames(split_dir: Path) -> list[tuple[Path, dict]]:
    """Return (file, content) of each frame."""
    return [(path, read_frame_info(path)) for path in info_files(split_dir)]


def test_every_kart_is_followed_on_every_track_for_as_many_frames(sample_data: Path):
    followed = Counter()
    for _, info in read_frames(sample_data / "train"):
        followed.update((info["track"], info["karts"][view]) for view in range(len(info["detections"])))
    assert set(followed) == {(track, kart) for track in TRACKS for kart in KARTS}
    assert len(set(followed.values())) == 1
    assert followed.total() >= 4000


def test_train_and_valid_are_of_different_races(sample_data: Path):
    places = {
        split: {str(read_json(path)["location"]) for path in info_files(sample_data / split)}
        for split in ("train", "valid")
    }
    assert not places["train"] & places["valid"]
    assert sum(len(info["detections"]) for _, info in read_frames(sample_data / "valid")) >= 400


def test_every_view_has_its_image_and_the_whole_is_small(sample_data: Path):
    for split in ("train", "valid"):
        for path, info in read_frames(sample_data / split):
            for view in range(len(info["detections"])):
                with Image.open(sample_data / image_file(path, view)) as image:
                    assert image.size == VIEW_SIZE
    assert sum(path.stat().st_size for path in sample_data.rglob("*") if path.is_file()) < 25e6


def test_karts_per_view_are_distributed_as_in_the_courses_frames(sample_data: Path):
    numbers = Counter()
    for path, info in read_frames(sample_data / "train"):
        numbers.update(len(build_scene(info, view).karts) for view in range(len(info["detections"])))
        assert path.name.endswith("_info.json")
    assert 0.55 < numbers[1] / numbers.total() < 0.65
    assert max(numbers) >= 5


def test_the_evaluation_sets_are_true_by_the_label_rule(sample_data: Path, capsys):
    verify(data=sample_data)
    printed = capsys.readouterr().out
    assert "120 of 120 answers" in printed and "200 of 200 true captions" in printed


def test_make_sample_packs_the_rendered_frames(sample_data: Path, tmp_path: Path, monkeypatch):
    """With the shipped frames in place of the engine, it makes the shipped sample."""
    drawn = {}

    def draw_races(plans, output: Path) -> tuple[int, int]:
        drawn[output.name] = sum(plan.num_views for plan in plans)
        shutil.copytree(sample_data / output.name, output)
        (output / ".races").mkdir()  # the renderer's records are not packed
        return 0, 0

    monkeypatch.setattr(sample, "check_installed", lambda preset: None)
    monkeypatch.setattr(sample, "draw_races", draw_races)
    sample.make_sample(output=tmp_path / "made", run_dir=tmp_path / "run")
    assert drawn == {"train": 4368, "valid": 672}
    for path in (path for path in (tmp_path / "made").rglob("*") if path.is_file()):
        assert path.read_bytes() == (SAMPLE / path.relative_to(tmp_path / "made")).read_bytes()
    assert len(list((tmp_path / "made").rglob("*.*"))) == 6
