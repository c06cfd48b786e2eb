"""CLIP's training data: which captions are true of which view, and cached image features."""

from pathlib import Path

import pytest
import torch

from homework.labels.frame_info import read_frame_info
from homework.labels.questions import captions
from homework.labels.rows import CaptionDataset, parse_image_file
from homework.labels.scene import build_scene
from homework.models.clip import CLIP, tokenize
from homework.models.images import clip_pixels
from homework.models.loading import load_base
from homework.training import clip_dataset
from homework.training.clip_dataset import (
    CachedFeatureDataset,
    CaptionMatchingDataset,
    CLIPTrainingModule,
    add_lora_to_clip,
    training_set,
)
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
    assert dataset.targets.tolist() == expected and dataset.targets.sum() > len(images)


def test_captions_without_frames(no_progress):
    """Without the frames' files, the rows are what is known."""
    for info in (no_progress / "train").glob("*_info.json"):
        info.unlink()
    rows = CaptionDataset("train", no_progress)
    dataset = CaptionMatchingDataset(rows, no_progress)
    assert dataset.targets.sum() == len({(row["image_file"], row["caption"]) for row in rows})


def test_texts_end_in_the_end_token(loaded):
    """As the grader does it: caption, then the tokenizer's end token."""
    tokenizer = loaded[1].tokenizer
    encoded = tokenize(TEXTS, tokenizer)
    for ids, mask, text in zip(encoded["input_ids"], encoded["attention_mask"], TEXTS, strict=True):
        assert ids[mask == 1].tolist() == [*tokenizer(text)["input_ids"], 49279]


def trainable_clip(base: Path) -> tuple[CLIPTrainingModule, object]:
    """A new CLIP with LoRA in training mode, and its tokenizer."""
    model, processor = load_base(str(base))
    return CLIPTrainingModule(add_lora_to_clip(CLIP.from_vlm(model), 4, str(base))).train(), processor.tokenizer


def captioned_views(data: Path) -> CaptionMatchingDataset:
    return CaptionMatchingDataset(CaptionDataset("train", data), data)


def test_images_are_encoded_once_and_as_in_training(loaded_nano, tiny_data, monkeypatch):
    """However often an image is needed, and though CLIP is in eval mode; the new images of a batch together."""
    model, views, sizes = build_clip(loaded_nano).eval(), captioned_views(tiny_data), []
    monkeypatch.setattr(clip_dataset, "MAX_CACHED_IMAGES", len(views) - 1)
    encode = model.encode_vision_features
    monkeypatch.setattr(model, "encode_vision_features", lambda pixels: sizes.append(len(pixels)) or encode(pixels))
    dataset = CachedFeatureDataset(views, model, seed=1)
    assert len(dataset) == len(views) - 1 and not sizes
    batches = [[0, 2, 0], [2, 1], list(range(len(dataset))), [3]]
    items = dict(pair for batch in batches for pair in zip(batch, dataset.__getitems__(batch), strict=True))
    assert sizes == [2, 1, len(dataset) - 3] and not model.training
    again = CachedFeatureDataset(views, model, seed=1).chosen
    assert dataset.chosen == again and len(set(again)) == len(again)
    model.train()
    for i, (features, targets) in items.items():
        view, expected_targets = views[again[i]]
        with torch.no_grad():
            expected = encode(clip_pixels([view]))[0]
        assert torch.allclose(features, expected, atol=1e-5) and torch.equal(targets, expected_targets)
    assert torch.equal(dataset[1][0], items[1][0])


def test_cached_features_give_the_loss_of_the_pixels(nano_folder, tiny_data):
    """The loss is the same with cached features as with pixels."""
    (module, tokenizer), views = trainable_clip(nano_folder), captioned_views(tiny_data)
    dataset, collate = training_set(views, module.base, tokenizer, seed=0)
    some = [0, 2, 3]
    pixels = clip_dataset.collate_images([views[dataset.chosen[i]] for i in some], views.texts(tokenizer))
    with torch.no_grad():
        losses = [module(**batch)["loss"].item() for batch in (collate([dataset[i] for i in some]), pixels)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_trainable_vision_encoder_gets_pixels(smol_folder, tiny_data):
    """Without prediction heads LoRA is on the vision encoder too: its batches hold pixels."""
    (module, tokenizer), views = trainable_clip(smol_folder), captioned_views(tiny_data)
    dataset, collate = training_set(views, module.base, tokenizer, seed=0)
    assert dataset is views and "pixel_values" in collate([dataset[0]])
