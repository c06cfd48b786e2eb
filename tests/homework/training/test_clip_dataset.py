"""CLIP's training data: which captions are true of which view, and cached image features."""

import logging
from pathlib import Path

import pytest
import torch

from homework.labels.frame_info import read_frame_info
from homework.labels.questions import captions, classify_caption
from homework.labels.rows import CaptionDataset, parse_image_file
from homework.labels.scene import build_scene
from homework.models.clip import CLIP, class_prior_logits, tokenize
from homework.models.images import clip_pixels
from homework.models.loading import load_base
from homework.training import clip_dataset
from homework.training.clip_dataset import (
    MAX_BATCH_CAPTIONS,
    CachedFeatureDataset,
    CaptionMatchingDataset,
    CLIPTrainingModule,
    add_lora_to_clip,
    sample_captions,
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
        assert {dataset.captions[i] for i in dataset[row][1]} == true_captions(tiny_data, image)


def test_truth_of_a_whole_split(tiny_data):
    """For every view and caption of a split, what is marked true is what the scene says."""
    rows = CaptionDataset("train", tiny_data)
    dataset = CaptionMatchingDataset(rows, tiny_data)
    images = list(dict.fromkeys(row["image_file"] for row in rows))
    expected = [sorted(true_captions(tiny_data, image)) for image in images]
    assert [[dataset.captions[i] for i in ids] for ids in dataset.caption_ids] == expected
    assert sum(map(len, expected)) > len(images)


def test_for_each_image_the_file_decides_the_types_that_it_has(tiny_data, caplog):
    """The label rule adds captions of other types; one line says of how many views the file disagrees with it."""
    caplog.set_level(logging.INFO, "homework")
    image, other, third = (f"train/00000_0{view}_im.jpg" for view in range(3))
    own = {"xue is the ego car.", "tux is left of the ego car.", "A race at night."}  # the ego kart is tux
    rows = [{"image_file": image, "caption": text} for text in own]
    rows += [{"image_file": other, "caption": "gnu is the ego car."}]  # as by the rule
    rows += [{"image_file": third, "caption": "Seen from behind."}]  # of no known type
    dataset = CaptionMatchingDataset(rows, tiny_data)
    found = [{dataset.captions[i] for i in ids} for ids in dataset.caption_ids]
    kept = {text for text in true_captions(tiny_data, image) if classify_caption(text) in ("total", "track")}
    assert found[0] == own | kept and len(kept) == 2
    assert found[1] == true_captions(tiny_data, other)
    assert found[2] == true_captions(tiny_data, third) | {"Seen from behind."}
    assert caplog.messages == [
        f"the captions of 1 of 3 views, e.g. {image}, disagree with the label rule; they are used as they are"
    ]


def test_captions_of_the_rule_disagree_with_nothing(tiny_data, caplog):
    caplog.set_level(logging.INFO, "homework")
    captioned_views(tiny_data)
    assert not caplog.messages


def test_captions_without_frames(no_progress):
    """Without the frames' files, the rows are what is known."""
    for info in (no_progress / "train").glob("*_info.json"):
        info.unlink()
    rows = CaptionDataset("train", no_progress)
    dataset = CaptionMatchingDataset(rows, no_progress)
    assert sum(map(len, dataset.caption_ids)) == len({(row["image_file"], row["caption"]) for row in rows})


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
    for i, (features, caption_ids) in items.items():
        view, expected_ids = views[again[i]]
        with torch.no_grad():
            expected = encode(clip_pixels([view]))[0]
        assert torch.allclose(features, expected, atol=1e-5) and caption_ids == expected_ids
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


def test_few_captions_give_the_loss_of_all(loaded_nano, tiny_data):
    """Up to `MAX_BATCH_CAPTIONS` captions, the loss is to the bit that of every image against every caption."""
    model, tokenizer, views = build_clip(loaded_nano), loaded_nano[1].tokenizer, captioned_views(tiny_data)
    targets = torch.zeros(len(views), len(views.captions))
    for target, ids in zip(targets, views.caption_ids, strict=True):
        target[ids] = 1
    prior_logits = class_prior_logits(targets.mean(0), [classify_caption(caption) for caption in views.captions])
    batch = clip_dataset.collate_images([views[i] for i in (4, 0, 2)], views.texts(tokenizer), seed=3)
    assert len(batch["weights"]) == len(views.captions) <= MAX_BATCH_CAPTIONS
    with torch.no_grad():
        images = model.encode_image(batch["pixel_values"])
        texts = model.encode_text(**tokenize(views.captions, tokenizer))
        expected = model.loss(images, texts, targets[[4, 0, 2]], prior_logits)
        assert torch.equal(CLIPTrainingModule(model)(**batch)["loss"], expected)


def free_captions(data: Path, number: int) -> CaptionMatchingDataset:
    """The views of `train` with so many different captions of no known type, evenly spread."""
    images = sorted(f"train/{path.name}" for path in (data / "train").glob("*_im.jpg"))
    text = "Driver {} passes {} of the others on its left side.".format
    rows = [{"image_file": images[i % len(images)], "caption": text(i, i % 7)} for i in range(number)]
    return CaptionMatchingDataset(rows, data)


def test_the_cost_of_a_step_does_not_grow_with_the_captions(nano_folder, tiny_data, monkeypatch):
    """A step with 5,000 captions encodes less than twice the tokens of one with 120, though all are true in it."""
    (module, tokenizer), costs = trainable_clip(nano_folder), []
    encode = module.base.text_encoder.forward
    monkeypatch.setattr(
        module.base.text_encoder,
        "forward",
        lambda input_ids, **options: costs.append(input_ids.numel()) or encode(input_ids=input_ids, **options),
    )
    for number in (120, 5000):
        views = free_captions(tiny_data, number)
        dataset, collate = training_set(views, module.base, tokenizer, seed=0)
        module(**collate([dataset[i] for i in range(len(dataset))]))["loss"].backward()
    assert costs[0] < costs[1] < 2 * costs[0]


def test_the_expected_loss_of_a_sample_is_that_of_all_captions(loaded_nano, tiny_data):
    model, views = build_clip(loaded_nano), free_captions(tiny_data, 600)
    generator, num_captions = torch.Generator().manual_seed(0), len(views.captions)
    unit = [torch.randn(n, 128, generator=generator) for n in (2, num_captions)]
    images, texts = (torch.nn.functional.normalize(features, dim=-1) for features in unit)
    prior_logits = torch.randn(num_captions, generator=generator)
    for batch in ([0, 1], range(len(views))):  # few and most captions are true of an image of the batch
        targets = torch.zeros(len(batch), num_captions)
        for target, i in zip(targets, batch, strict=True):
            target[views.caption_ids[i]] = 1
        true_ids = [i for view in batch for i in views.caption_ids[view]]
        losses, features = [], images[torch.arange(len(batch)) % 2]
        with torch.no_grad():
            for seed in range(200):
                chosen, weights = sample_captions(true_ids, num_captions, seed)
                assert len(set(chosen.tolist())) == MAX_BATCH_CAPTIONS
                losses.append(model.loss(features, texts[chosen], targets[:, chosen], prior_logits[chosen], weights))
            expected = model.loss(features, texts, targets, prior_logits).item()
        losses = torch.stack(losses)
        assert losses.mean().item() == pytest.approx(expected, abs=4 * losses.std().item() / len(losses) ** 0.5)
        assert losses.std() < 0.1 * expected


def test_a_sample_depends_on_the_batch_and_the_seed_alone():
    """So that a resumed run draws what an uninterrupted one does."""
    first, again, other, later = (
        sample_captions(ids, 1000, seed)[0] for ids, seed in (([5, 7], 0), ([5, 7], 0), ([5, 7], 1), ([7, 5], 0))
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, later)
    assert {5, 7} <= set(first.tolist()) and first.tolist() == sorted(first.tolist())
