"""Broken frames, annotation files and images are read, or refused in one line that names them."""

import json
import shutil
from pathlib import Path

import pytest

from homework.clip import count_correct_by_type
from homework.generate_captions import rows as caption_rows
from homework.generate_qa import rows as qa_rows
from homework.labels.frame_info import read_scenes
from homework.labels.rows import MultiChoiceQADataset, image_file
from homework.models.images import clip_pixels, load_views
from homework.training.clip_dataset import CaptionMatchingDataset
from homework.training.packing import PackedVQADataset
from homework.utils.images import open_image

from .mutate import broken_files, broken_json_files, failures


def read_frame(info: Path) -> None:
    """Derive all annotations from a frame, as JSON."""
    for view, scene in read_scenes(info):
        image = image_file(info, view)
        json.dumps([*qa_rows(scene, image), *caption_rows(scene, image)])


def read_pairs(data: Path) -> None:
    """Build the training set of the VLM."""
    views = PackedVQADataset.of_split("train", data)
    assert len([views[i] for i in range(len(views))]) == len(views)


def read_captions(data: Path) -> None:
    """Build the training set of CLIP."""
    views = CaptionMatchingDataset.of_split("train", data)
    assert len([views[i] for i in range(len(views))]) == len(views)


def read_questions(data: Path) -> None:
    """Read the questions of CLIP and their images."""
    rows = MultiChoiceQADataset("valid_grader", data).rows
    clip_pixels([open_image(row["image_path"]) for row in rows])
    count_correct_by_type(rows, [0] * len(rows))


JSON_FILES = {
    "train/00000_info.json": lambda data: read_frame(data / "train/00000_info.json"),
    "train/00001_info.json": read_captions,
    "train/generated_qa_pairs.json": read_pairs,
    "train/generated_captions.json": read_captions,
    "valid_grader/all_mc_qas.json": read_questions,
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_broken_json(tiny_data: Path, capfd, name: str):
    """60 versions of each file; also a mutated frame below intact captions."""
    file = tiny_data / name
    versions = broken_json_files(file.read_bytes(), 60, seed=1)
    assert failures(file, versions, lambda: JSON_FILES[name](tiny_data), tiny_data) == []
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as open_image does, whose filter pytest overrides
def test_broken_images(tiny_data: Path, capfd, recwarn):
    """120 versions of a view, read by both readers."""
    image, cache = tiny_data / "train/00000_00_im.jpg", tiny_data / ".cache"
    paths = [image, tiny_data / "train/00000_01_im.jpg"]

    def read() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        assert load_views(paths, cache).shape == (2, 100, 150, 3)
        clip_pixels([open_image(image)])

    assert failures(image, broken_files(image.read_bytes(), 120, seed=2), read, image) == []
    assert capfd.readouterr().err == "" and not list(recwarn)


@pytest.mark.parametrize(
    "magic", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b"II*\0", b"\0\0\1\0"]
)
def test_other_formats_are_refused(tmp_path: Path, magic: bytes):
    """Pillow opens some formats with other programs."""
    (tmp_path / "view.jpg").write_bytes(magic + bytes(1000))
    assert failures(tmp_path / "view.jpg", iter([magic]), lambda: open_image(tmp_path / "view.jpg"), tmp_path) == []
    with pytest.raises(ValueError, match=r"view.jpg: not a readable image"):
        open_image(tmp_path / "view.jpg")


def test_a_broken_cache_is_rebuilt(tiny_data: Path):
    """The cache can be decoded again, so a broken one is not an error."""
    paths, cache = sorted((tiny_data / "train").glob("*_im.jpg")), tiny_data / ".cache"
    expected = load_views(paths)
    load_views(paths, cache)
    (file,) = cache.glob("views-*.npy")
    content = file.read_bytes()
    for version in [b"", content[:60], content[:-1], content.replace(b"|u1", b"<f8"), b"\x80\x04N."]:
        file.write_bytes(version)
        assert (load_views(paths, cache) == expected).all()
        assert file.read_bytes() == content
