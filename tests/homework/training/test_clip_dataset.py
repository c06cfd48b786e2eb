"""What CLIP learns from: what is true of which view, and views that are looked at once."""

from pathlib import Path

import pytest
import torch

from homework import clip
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import captions
from homework.labels.rows import CaptionDataset, parse_image_file
from homework.labels.scene import build_scene
from homework.models.images import clip_pixels
from homework.training import clip_dataset as captioned
from homework.training.clip_dataset import CachedFeatureDataset, CaptionMatchingDataset, tokenize
from homework.utils.io import write_json
from tests.tiny_models import TEXTS, build_clip


def true_captions(data: Path, image: str) -> set[str]:
    frame, view = parse_image_file(image)
    return set(captions(build_scene(read_frame_info(data / f"{frame}_info.json"), view)))


def test_a_caption_is_true_wherever_it_is_true(tiny_data):
    """A caption that the file gives for one view counts as true of every view that it is true of."""
    one, other = "train/00000_00_im.jpg", "train/00000_01_im.jpg"
    for file in (tiny_data / "train").glob("*_captions.json"):
        file.unlink()
    rows = [("The track is lighthouse.", one), ("gnu is the ego car.", other)]
    assert all("The track is lighthouse." in true_captions(tiny_data, image) for image in (one, other))
    write_json(
        tiny_data / "train" / "some_captions.json", [{"image_file": image, "caption": text} for text, image in rows]
    )
    dataset = CaptionMatchingDataset(CaptionDataset("train", tiny_data), tiny_data)
    assert len(dataset) == 2 and sorted(set(dataset.captions)) == dataset.captions
    for row, image in enumerate((one, other)):
        marked = {text for text, true in zip(dataset.captions, dataset[row][1], strict=True) if true}
        assert marked == true_captions(tiny_data, image)


def test_truth_of_a_whole_split(tiny_data):
    """For every view and caption of a split, what is marked true is what the scene says."""
    rows = CaptionDataset("train", tiny_data)
    dataset = CaptionMatchingDataset(rows, tiny_data)
    images = list(dict.fromkeys(row["image_file"] for row in rows))
    expected = [[float(text in true_captions(tiny_data, image)) for text in dataset.captions] for image in images]
    assert dataset.truth.tolist() == expected and dataset.truth.sum() > len(images)


def test_captions_without_frames(no_progress):
    """Without the frames' files, the rows are what is known."""
    for info in (no_progress / "train").glob("*_info.json"):
        info.unlink()
    rows = CaptionDataset("train", no_progress)
    dataset = CaptionMatchingDataset(rows, no_progress)
    assert dataset.truth.sum() == len({(row["image_file"], row["caption"]) for row in rows})


def test_texts_end_in_the_end_token(loaded):
    """As the grader does it: caption, then the tokenizer's end token."""
    tokenizer = loaded[1].tokenizer
    encoded = tokenize(TEXTS, tokenizer)
    for ids, mask, text in zip(encoded["input_ids"], encoded["attention_mask"], TEXTS, strict=True):
        assert ids[mask == 1].tolist() == [*tokenizer(text)["input_ids"], 49279]


def captioned_views(data: Path) -> CaptionMatchingDataset:
    return CaptionMatchingDataset(CaptionDataset("train", data), data)


def test_views_are_looked_at_once_and_as_in_training(loaded_nano, tiny_data, monkeypatch):
    """However often a view is asked for, and though CLIP is in eval mode; a batch's new views together."""
    model, views, looks = build_clip(loaded_nano).eval(), captioned_views(tiny_data), []
    monkeypatch.setattr(captioned, "MAX_CACHED_IMAGES", len(views) - 1)
    look = model.look
    monkeypatch.setattr(model, "look", lambda pixels: looks.append(len(pixels)) or look(pixels))
    dataset = CachedFeatureDataset(views, model, seed=1)
    assert len(dataset) == len(views) - 1 and not looks
    batches = [[0, 2, 0], [2, 1], list(range(len(dataset))), [3]]
    items = dict(pair for batch in batches for pair in zip(batch, dataset.__getitems__(batch), strict=True))
    assert looks == [2, 1, len(dataset) - 3] and not model.training
    again = CachedFeatureDataset(views, model, seed=1).chosen
    assert dataset.chosen == again and len(set(again)) == len(again)
    model.train()
    for i, (shown, truth) in items.items():
        view, expected_truth = views[again[i]]
        with torch.no_grad():
            expected = look(clip_pixels([view]))[0]
        assert torch.allclose(shown, expected, atol=1e-5) and torch.equal(truth, expected_truth)
    assert torch.equal(dataset[1][0], items[1][0])


def test_a_look_is_as_good_as_the_pixels(nano_folder, tiny_data):
    """The loss of views that were looked at before is that of their pixels."""
    module, views = clip.build_trainable(str(nano_folder), 4).train(), captioned_views(tiny_data)
    tokenizer = clip.load_processor(str(nano_folder)).tokenizer
    dataset, collate = clip.training_set(views, module.base, tokenizer, seed=0)
    some = [0, 2, 3]
    pixels = captioned.collate_images([views[dataset.chosen[i]] for i in some], views.texts(tokenizer))
    with torch.no_grad():
        losses = [module(**batch)["loss"].item() for batch in (collate([dataset[i] for i in some]), pixels)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_trained_tower_looks_at_each_step(smol_folder, tiny_data):
    """A base that recognises nothing has LoRA on its vision encoder: its batches are pixels."""
    module, views = clip.build_trainable(str(smol_folder), 4), captioned_views(tiny_data)
    tokenizer = clip.load_processor(str(smol_folder)).tokenizer
    dataset, collate = clip.training_set(views, module.base, tokenizer, seed=0)
    assert dataset is views and "pixel_values" in collate([dataset[0]])
