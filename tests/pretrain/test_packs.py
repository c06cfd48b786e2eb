"""Packed frames: sizes, order, staleness, and the images in them."""

import numpy as np
import pytest

from homework.models.images import to_view_size
from homework.utils.errors import InputError
from homework.utils.images import open_image
from pretrain import packs
from pretrain.dataset import PretrainDataset
from pretrain.packs import data_fingerprint, find_packs, pack_split, read_pack


def test_packs_hold_all_frames_in_files_of_a_size(tiny_data):
    """No file is larger than allowed; names, labels and pixels are those of the folder, in its order."""
    files = pack_split(tiny_data, "train", max_bytes=12_000)
    assert len(files) > 1 and all(file.stat().st_size <= 12_000 for file in files)
    frames = [frame for file in files for frame in read_pack(file)[0]]
    assert [frame.name for frame in frames] == [f"train/0000{number}" for number in range(3)]
    assert [len(frame.info["detections"]) for frame in frames] == [3, 3, 3]
    views = PretrainDataset(tiny_data, {"train": 1.0})
    for file, view in zip(views.files, views.views, strict=True):
        assert np.array_equal(view, to_view_size(open_image(tiny_data / file)))
    assert len(views) == 9


def test_packs_are_made_again_when_files_change(tiny_data):
    """An unchanged folder keeps its packs; a frame less gives others, and none of the old ones stays."""
    before = pack_split(tiny_data, "train", max_bytes=10_000)
    times, digest = [file.stat().st_mtime_ns for file in before], data_fingerprint(before)
    assert [file.stat().st_mtime_ns for file in pack_split(tiny_data, "train", max_bytes=10_000)] == times
    for file in (tiny_data / "train").glob("00002_*"):
        file.unlink()
    after = pack_split(tiny_data, "train", max_bytes=10_000)
    assert len(after) < len(before) and after == find_packs(tiny_data, "train") and data_fingerprint(after) != digest


def test_an_image_that_is_missing_is_named(tiny_data):
    (tiny_data / "train/00001_02_im.jpg").unlink()
    with pytest.raises(InputError, match=r"00001_02_im\.jpg: no such image"):
        pack_split(tiny_data, "train")
    assert not find_packs(tiny_data, "train")


def test_a_broken_pack_is_named(tiny_data):
    """Cut short, as by an interrupted copy."""
    (file,) = pack_split(tiny_data, "train")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"train-000\.safetensors: not a pack of frames"):
        packs.read_pack(file)
