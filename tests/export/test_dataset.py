"""Test `export dataset`: rows, card, constant memory, and that `datasets`, TRL and open_clip read them."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from export.common import MANIFEST_FILE, new_folder
from export.dataset import Split, Statistics, dataset
from export.rows import SUBSETS, read_views, types_in
from homework.labels.rows import info_files
from homework.utils.errors import InputError
from homework.utils.io import write_json
from tests.conftest import assert_one_line_error


def rows_of(data: Path, split: str, subset: str) -> list[dict]:
    """Return a subset's rows as the export writes them, an image as its number of bytes."""
    views = Split.read(data, split, 10).views(info_files(data / split))
    return [row for view in views for row in SUBSETS[subset](view)]


def test_rows_have_the_columns_that_trainers_read(tiny_data):
    """A question per conversation, all questions of a view in `texts`, a caption per image-text pair."""
    write_json(tiny_data / "train/render.json", {"seed": 7})
    messages, texts, captions = (rows_of(tiny_data, "train", subset) for subset in SUBSETS)
    annotated = json.loads((tiny_data / "train/generated_qa_pairs.json").read_text())
    given = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in messages]
    assert given == [(row["question"], row["answer"]) for row in annotated]
    assert given == [(turn["user"], turn["assistant"]) for row in texts for turn in row["texts"]]
    assert [row["text"] for row in captions] == [
        row["caption"] for row in json.loads((tiny_data / "train/generated_captions.json").read_text())
    ]
    assert len(texts) == 9 and [name for row in texts for name in types_in(row)] == [
        row["question_type"] for row in messages
    ]
    first = messages[0]
    assert first["images"][0]["bytes"] == (tiny_data / "train/00000_00_im.jpg").read_bytes()
    assert (first["frame"], first["view"], first["track"], first["seed"]) == ("00000", 0, "lighthouse", 7)
    assert first["kart_sizes"] == [
        {"kart": "tux", "width": 30, "height": 30},
        {"kart": "gnu", "width": 20, "height": 15},
    ]
    assert first["generator"].startswith("tux-vlm ")


def test_statistics_count_rows_and_views(tiny_data):
    statistics = Statistics()
    for view in Split.read(tiny_data, "train", 2).views(info_files(tiny_data / "train")):
        statistics.add(view, list(SUBSETS["texts"](view)))
    assert statistics.num_rows == statistics.num_views == 9 and len(statistics.tracks) == 3
    assert statistics.num_karts == {2: 3, 1: 2, 3: 3, 0: 1} and statistics.types["track"] == 9


def test_a_broken_or_missing_image_is_named(tiny_data):
    frame = info_files(tiny_data / "train")[0]
    (tiny_data / "train/00000_01_im.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="00000_01_im.jpg: not a readable image"):
        list(read_views(frame, "", None))


def test_only_an_earlier_export_is_replaced(tmp_path):
    """A folder of the user's stays; an export is replaced only once the new one is complete."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").touch()
    with pytest.raises(InputError, match="refusing to replace"), new_folder(output):
        pass
    (output / MANIFEST_FILE).touch()
    with pytest.raises(KeyboardInterrupt), new_folder(output):
        raise KeyboardInterrupt
    assert (output / "mine.txt").exists()
    with new_folder(output, kind="test") as folder:
        (folder / "new.txt").touch()
    assert sorted(file.name for file in output.iterdir()) == [MANIFEST_FILE, "new.txt"]
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_without_the_packages_the_remedy_is_named(call, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("export.common.importlib.util.find_spec", lambda name: None)
    result = call((dataset,), "dataset", "--output", tmp_path / "out", "--data", tiny_data)
    assert_one_line_error(result, "make export-env")


LOAD = """
import json, sys
from datasets import Image, load_dataset
folder, subset = sys.argv[1:]
loaded = load_dataset(folder, subset)
sizes = {split: [] for split in loaded}
for split, rows in loaded.items():
    pictures = "image" if subset == "captions" else "images"
    for row in rows:
        images = row[pictures] if subset != "captions" else [row[pictures]]
        sizes[split] += [image.size for image in images]
undecoded = loaded.cast_column(pictures, Image(decode=False) if subset == "captions" else [Image(decode=False)])
rows = {split: rows.to_list() for split, rows in undecoded.items()}
print(json.dumps({"rows": rows, "sizes": sizes}, default=lambda content: content.hex()))
"""


@pytest.mark.slow
def test_datasets_reads_the_rows_back_equal(in_export_env, tiny_data, tmp_path):
    """Both splits in shards, every column of each subset and the image's bytes; the card's counts are checked too."""
    output = tmp_path / "out"
    flags = ("--data", tiny_data, "--frames-per-shard", "2", "--output", output)
    in_export_env("-m", "export", "dataset", "--split", "train", "valid", *flags)
    assert len(list((output / "messages").glob("train-*-of-00002.parquet"))) == 2
    for subset in SUBSETS:
        loaded = in_export_env(output, subset, script=LOAD, HF_DATASETS_CACHE=str(tmp_path / "cache"))
        for split in ("train", "valid"):
            expected = json.loads(json.dumps(rows_of(tiny_data, split, subset), default=lambda content: content.hex()))
            assert loaded["rows"][split] == expected and {*map(tuple, loaded["sizes"][split])} == {(150, 100)}
    card = (output / "README.md").read_text()
    num_rows = len(rows_of(tiny_data, "train", "messages"))
    assert f"| `train` | `messages` | {num_rows} | 9 | 3 |" in card and "license: unknown" in card


MEMORY = """
import json, resource, sys
from pathlib import Path
from export.dataset import dataset
dataset(split=("train",), output=Path(sys.argv[1]) / "out", data=Path(sys.argv[1]))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
"""


def write_many(data: Path, num_frames: int) -> None:
    """Write frames of 100 views with 10 karts each: 3,400 questions per frame, all views with the same image."""
    boxes = [[1, kart, 40 * kart, 40 * kart, 40 * kart + 60, 40 * kart + 40] for kart in range(9)]
    info = {"track": "abyss", "karts": [f"kart{n}" for n in range(10)]}
    info["detections"] = [[*boxes, [1, 9, 300, 200, 340, 240]]] * 100
    (data / "train").mkdir(parents=True)
    image = data / "image.jpg"
    Image.new("RGB", (150, 100)).save(image)
    for frame in range(num_frames):
        (data / f"train/{frame:05x}_info.json").write_text(json.dumps(info))
        for view in range(100):
            os.link(image, data / f"train/{frame:05x}_{view:02d}_im.jpg")


@pytest.mark.slow
def test_a_million_rows_take_no_more_memory_than_a_tenth(in_export_env, tmp_path):
    write_many(tmp_path / "small", 18)
    write_many(tmp_path / "large", 180)
    small, large = (in_export_env(tmp_path / size, script=MEMORY) for size in ("small", "large"))
    card = (tmp_path / "large/out/README.md").read_text()
    assert "| `train` | `messages` | 612,000 |" in card and "| `train` | `captions` | 378,000 |" in card
    assert large < small + 50, (small, large)
