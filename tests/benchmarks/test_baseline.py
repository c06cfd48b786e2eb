"""benchmarks/baseline, against and clip_steps: the public pipeline does the same work, only slower."""

import json
import re

import pytest
import torch

from benchmarks import baseline, clip_steps
from benchmarks import vs_baseline as against
from homework import clip
from homework.labels.rows import CaptionDataset, VQADataset
from homework.models.images import clip_pixels
from homework.models.loading import load_base
from homework.models.prompts import PromptTokens
from homework.training.lora import PeftTrainingModule, add_lora
from homework.training.packing import IGNORE, PackedTrainingModule, collate, pack
from homework.utils.images import open_image
from homework.utils.io import read_json


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The work of a benchmark, cut down to seconds."""
    monkeypatch.setattr(baseline, "LONGEST_EDGE", 300)
    monkeypatch.setattr(against, "CLIP_BATCH", 2)
    monkeypatch.setattr(clip_steps, "CLIP_BATCH", 2)


@pytest.fixture
def rows(tiny_data) -> list[dict]:
    """The tiny valid split's questions."""
    return VQADataset("valid", tiny_data).rows


def test_labels_are_the_answers(nano_folder, rows):
    """Loss falls on the answer and its end token alone."""
    processor = baseline.load(str(nano_folder))[1]
    item = baseline.OneQuestion(rows, processor, baseline.as_stored)[0]
    labelled = item["labels"] != IGNORE
    assert processor.tokenizer.decode(item["labels"][labelled]) == f" {rows[0]['answer']}<end_of_utterance>"
    assert torch.equal(item["labels"][labelled], item["input_ids"][labelled]) and labelled[-1]


def test_same_loss_as_packed(nano_folder, rows):
    """On the same pixels a question's loss is what our packing gives it."""
    model, processor = baseline.load(str(nano_folder))
    dataset = baseline.OneQuestion(rows[:1], processor, baseline.as_stored)
    with torch.no_grad():
        expected = model.eval()(**baseline.collate([dataset[0]], processor.tokenizer.pad_token_id)).loss
    ours, processor = load_base(str(nano_folder))
    packed = pack(PromptTokens(processor), [(rows[0]["question"], rows[0]["answer"], 1.0)])
    pixels = processor.image_processor([[open_image(rows[0]["image_path"])]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        loss = PackedTrainingModule(ours)(**collate([packed], pixels, 2))["loss"]
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_same_answers_on_the_same_pixels(base_folder, tmp_path, rows):
    """Token for token; blown up first, images are other pixels, so that is only asked of the time."""
    model, _ = load_base(str(base_folder))
    PeftTrainingModule(add_lora(model, 4, str(base_folder))).save_adapter(tmp_path / "adapter")
    measure = against.vlm_answering(str(base_folder), tmp_path / "adapter", rows[:10])
    if base_folder.name == "tiny_nano":
        assert "(the same answers" in measure.name
    assert measure.ours() > 0 and measure.baseline() > 0


def test_same_pixels_for_clip(nano_folder, tiny_data):
    """The crop of the grader, as ours makes it."""
    rows = CaptionDataset("valid", tiny_data).rows
    tokenizer = baseline.load(str(nano_folder))[1].tokenizer
    item = baseline.OneCaption(rows, tokenizer)[0]
    ours = clip_pixels([open_image(rows[0]["image_path"])])[0]
    assert (item["pixel_values"] - ours).abs().max() < 1e-5
    assert tokenizer.decode(item["input_ids"]) == rows[0]["caption"] + tokenizer.eos_token
    assert clip.tokenize([rows[0]["caption"]], tokenizer)["input_ids"][0].tolist() == item["input_ids"].tolist()


def test_same_pairs(tiny_data, tmp_path):
    """The plain loop writes what ours writes."""
    measure = against.pairs_written(tiny_data / "valid", tmp_path)
    assert measure.baseline() > 0 and measure.ours() > 0
    plain, ours = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "ours"))
    assert plain == ours and len(plain) == 2 * (10 + 7 + 13)


def test_training_is_timed_in_units(nano_folder, tiny_data, capsys):
    """Both trainings run, and a comparison prints both medians and the median ratio."""
    rows = VQADataset("train", tiny_data).rows
    measure = against.vlm_training(str(nano_folder), rows, tiny_data / ".cache", batch=2, steps=1)
    result = against.compare(measure, 1)
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"]) and result["ratio"] > 0
    assert "questions trained, tiny_nano" in capsys.readouterr().out


def test_clip_is_timed_with_the_look_at_its_views(nano_folder, tiny_data, monkeypatch):
    """Of our CLIP a whole training counts: the look at all of its views, then the steps."""
    measure = against.clip_training(str(nano_folder), CaptionDataset("train", tiny_data).rows, tiny_data, steps=1)
    assert against.compare(measure, 1)["ratio"] > 0
    monkeypatch.setattr(against, "looking", lambda dataset: 1e6)
    assert measure.ours() == pytest.approx(300 * 128 / 1e6, rel=0.01)


def test_both_clips_are_asked_until_ours_is_as_good(nano_folder, tiny_data, sample_data, capsys):
    """The public one at its last step, ours until it has as many right; then both, and how much sooner."""
    clip_steps.run(data=tiny_data, base=str(nano_folder), steps=2, questions=10, asked=sample_data)
    *_, public, ours, last = capsys.readouterr().out.splitlines()
    assert public.split()[:2] == ["public", "2"] and ours.split()[:2] == ["ours", "2"]
    assert re.search(r"after 2 steps, \d+ s; ours .* after 2, \d+ s: 1\.0 times fewer steps", last)


def test_the_command_prints_a_line_a_measure(nano_folder, tiny_data, tmp_path, capsys):
    """On a base that the adapter is not for, the VLM's training alone."""
    against.run(
        data=tiny_data, base=str(nano_folder), pairs=1, batch=2, steps=1, views=2, output=tmp_path / "against.json"
    )
    results = read_json(tmp_path / "against.json")["results"]
    assert len(results) == 1 and results[0]["ratio"] > 0
    assert f"{results[0]['ratio']:8.1f}" in capsys.readouterr().out.splitlines()[-1]
