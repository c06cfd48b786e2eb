"""Test benchmarks.baseline and vs_baseline: the baseline does the same work, only slower."""

import pytest
import torch

from benchmarks import baseline, throughput, vs_baseline
from homework import generate_qa
from homework.labels.generate import generate_annotations
from homework.labels.rows import CaptionDataset, VQADataset
from homework.models.clip import tokenize
from homework.models.images import clip_pixels
from homework.models.loading import load_base, load_processor
from homework.models.prompts import PromptTokens
from homework.training.lora import PeftTrainingModule, add_lora
from homework.training.packing import IGNORE_INDEX, PackedTrainingModule, collate, pack
from homework.utils.images import open_image
from homework.utils.io import read_json


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Reduce the work of a benchmark to seconds."""
    monkeypatch.setattr(baseline, "LONGEST_EDGE_PX", 300)
    monkeypatch.setattr(vs_baseline, "CLIP_BATCH_SIZE", 2)


@pytest.fixture
def rows(tiny_data) -> list[dict]:
    """Return the questions of the tiny valid split."""
    return VQADataset("valid", tiny_data).rows


def test_labels_are_the_answers(nano_folder, rows):
    """The loss is computed on the answer and its end token alone."""
    processor = load_processor(str(nano_folder))
    item = baseline.encode_question(rows[0], processor, open_image)
    is_answer = item["labels"] != IGNORE_INDEX
    assert processor.tokenizer.decode(item["labels"][is_answer].tolist()) == f" {rows[0]['answer']}<end_of_utterance>"
    assert torch.equal(item["labels"][is_answer], item["input_ids"][is_answer]) and is_answer[-1]


def test_same_loss_as_packed(nano_folder, rows):
    """On the same pixels a question has the same loss as packed."""
    module, processor = baseline.make_trainable_vlm(str(nano_folder), 4)
    encode = lambda row, processor: baseline.encode_question(row, processor, open_image)
    with torch.no_grad():
        expected = module.eval()(**baseline.encode_batch(rows[:1], encode, processor))["loss"]
    ours, processor = load_base(str(nano_folder))
    packed = pack(PromptTokens(processor), [(rows[0]["question"], rows[0]["answer"], 1.0)])
    pixels = processor.image_processor([[open_image(rows[0]["image_path"])]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        loss = PackedTrainingModule(ours)(**collate([packed], pixels, 2))["loss"]
    assert loss == pytest.approx(float(expected), rel=1e-4)


def test_same_answers_on_the_same_pixels(base_folder, tmp_path, rows):
    """Answers are the same token for token; upscaling changes the pixels, so it is only timed."""
    model, _ = load_base(str(base_folder))
    PeftTrainingModule(add_lora(model, 4, str(base_folder))).save_adapter(tmp_path / "adapter")
    comparison = vs_baseline.compare_vlm_answers(str(base_folder), tmp_path / "adapter", rows[:10])
    if base_folder.name == "tiny_nano":
        assert "(the same answers" in comparison.name
    assert comparison.ours() > 0 and comparison.baseline() > 0


def test_same_clip_inputs(nano_folder, tiny_data):
    """The baseline's CLIP gets the grader's crop and this repo's token ids."""
    row = CaptionDataset("valid", tiny_data).rows[0]
    processor = load_processor(str(nano_folder))
    item, tokenizer = baseline.encode_caption(row, processor), processor.tokenizer
    ours = clip_pixels([open_image(row["image_path"])])[0]
    assert (item["pixel_values"] - ours).abs().max() < 1e-5
    assert tokenizer.decode(item["input_ids"].tolist()) == row["caption"] + tokenizer.eos_token
    assert tokenize([row["caption"]], tokenizer)["input_ids"][0].tolist() == item["input_ids"].tolist()


def test_same_pairs(tiny_data, tmp_path):
    """The plain loop writes the same pairs."""
    comparison = vs_baseline.compare_pair_generation(tiny_data / "valid")
    assert comparison.baseline() > 0 and comparison.ours() > 0
    plain, ours = (
        read_json(write(tiny_data / "valid", str(tmp_path / f"{write.__name__}.json"), generate_qa.rows))
        for write in (baseline.write_pairs, generate_annotations)
    )
    assert plain == ours and len(plain) == 2 * (10 + 7 + 13)


def test_training_is_timed_in_questions(nano_folder, tiny_data, capsys):
    """Both trainings run, and a comparison prints both medians and the median ratio."""
    rows = VQADataset("train", tiny_data).rows
    cache_dir = tiny_data / ".cache"
    comparison = vs_baseline.compare_vlm_training(str(nano_folder), rows, cache_dir, batch_size=2, steps=1)
    result = vs_baseline.compare(comparison, 1)
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"]) and result["ratio"] > 0
    assert "questions trained, tiny_nano" in capsys.readouterr().out


def test_clip_training_includes_feature_caching(nano_folder, tiny_data, monkeypatch):
    """Our CLIP's rate is that of a full training: feature caching, then the steps."""
    rows = CaptionDataset("train", tiny_data).rows
    comparison = vs_baseline.compare_clip_training(str(nano_folder), rows, tiny_data, steps=1)
    assert vs_baseline.compare(comparison, 1)["ratio"] > 0
    monkeypatch.setattr(throughput, "feature_cache_seconds", lambda dataset: 1e6)
    assert comparison.ours() == pytest.approx(300 * 128 / 1e6, rel=0.01)


def test_command_prints_a_line_per_comparison(nano_folder, tiny_data, capsys):
    """With a base that the adapter does not fit, only the VLM's training is timed."""
    settings = {"repetitions": 1, "batch_size": 2, "steps": 1, "views": 2}
    vs_baseline.main(data=tiny_data, base=str(nano_folder), **settings)
    (line,) = capsys.readouterr().out.partition("ratio\n")[2].splitlines()
    assert line.startswith("questions trained, ") and float(line.split()[-1]) > 0
