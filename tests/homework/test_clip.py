"""Test homework.clip: training, checkpoints, and the grader's crop."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from homework import clip
from homework.labels.rows import MultiChoiceQADataset
from homework.models.clip import ADDITIONAL_WEIGHTS, CLIP
from homework.models.images import clip_pixels
from homework.models.runs import last_checkpoint
from homework.training import trainer
from homework.utils.errors import InputError
from tests.tiny_models import build_clip, features

WEIGHTS = "adapter_model.safetensors"


def train(base: Path, data: Path, folder: Path, steps: int = 4, **settings) -> Path:
    """Train a few steps; return the checkpoint's folder."""
    settings = {"batch_size": 3, "learning_rate": 0.02, "rank": 4} | settings
    clip.train(
        str(base), data=str(data), output=str(folder / "clip"), run_dir=str(folder / "run"), steps=steps, **settings
    )
    return folder / "clip"


@pytest.mark.parametrize("size", [(150, 100), (600, 400), (100, 150), (301, 201), (192, 192), (193, 195), (40, 31)])
def test_clip_pixels_are_the_graders(size):
    """The short side becomes 192 before a centre crop, as by torchvision's Resize and CenterCrop."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    width, height = size
    # torchvision: int(size * long / short), then int(round(rest / 2))
    new = (192, int(192 * height / width)) if width <= height else (int(192 * width / height), 192)
    left, top = (int(round((side - 192) / 2.0)) for side in new)
    reference = image.resize(new, Image.Resampling.BILINEAR).crop((left, top, left + 192, top + 192))
    reference = (torch.tensor(np.array(reference)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    pixels = clip_pixels([image, np.asarray(image)])
    assert pixels.shape == (2, 3, 192, 192) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[0], reference, atol=1e-6) and torch.equal(pixels[0], pixels[1])


def test_loading_gives_the_trained_model(base_folder, loaded, no_progress, tmp_path, views, monkeypatch):
    """A loaded checkpoint has the trained features, and its `.model` is the CLIP."""
    tokenizer, before, save_adapter_atomically = loaded[1].tokenizer, [], trainer.save_adapter_atomically

    def record(module, output, manifest) -> None:
        before.extend(features(module.base, tokenizer, views))
        save_adapter_atomically(module, output, manifest)

    monkeypatch.setattr(trainer, "save_adapter_atomically", record)
    folder = train(base_folder, no_progress, tmp_path)
    assert {"adapter_config.json", WEIGHTS, ADDITIONAL_WEIGHTS} <= {file.name for file in folder.iterdir()}
    again = clip.load(folder)
    assert type(again.model) is CLIP and not again.model.training and isinstance(again, nn.Module)
    for feature, expected in zip(features(again, tokenizer, views), before, strict=True):
        assert torch.allclose(feature, expected, atol=2e-3)  # the adapter is rounded to float16
    assert not torch.allclose(features(build_clip(loaded), tokenizer, views)[0], before[0], atol=1e-2)
    names = {
        k
        for k, p in build_clip(loaded).named_parameters()
        if not k.startswith(("vision_encoder", "text_encoder", "prediction_heads"))
    }
    saved = torch.load(folder / ADDITIONAL_WEIGHTS, weights_only=True)
    assert saved.keys() == names and "logit_scale" in names
    # the projections and the temperature are trained, not only LoRA
    fresh = build_clip(loaded).additional_weights()
    assert all(not torch.equal(saved[name], fresh[name]) for name in ("logit_scale", "vision_projection.weight"))


def test_a_vision_encoder_with_prediction_heads_is_frozen(base_folder, loaded, no_progress, tmp_path):
    """LoRA is on both encoders, or only on the text encoder if prediction heads read the image."""
    has_heads = build_clip(loaded).prediction_heads is not None
    assert has_heads == (base_folder.name == "tiny_nano")
    folder = train(base_folder, no_progress, tmp_path, steps=1)
    adapted = {name.split(".")[2] for name in load_file(folder / WEIGHTS)}
    assert adapted == ({"text_encoder"} if has_heads else {"text_encoder", "vision_encoder"})
    trained, base = clip.load(folder).model.state_dict(), build_clip(loaded).state_dict()
    frozen = {name for name in base if name.startswith("prediction_heads.")}
    if has_heads:
        frozen |= {name for name in base if name.startswith("vision_encoder.")}
    assert bool(frozen) == has_heads and all(torch.equal(trained[name], base[name]) for name in frozen)


def test_training_writes_to_runs_clip_by_default(nano_folder, no_progress, tmp_path, monkeypatch):
    """The adapter is in runs/clip of the working directory, checkpoints and TensorBoard in runs/clip-run."""
    monkeypatch.chdir(tmp_path)
    clip.train(str(nano_folder), data=str(no_progress), steps=1, batch_size=3)
    assert (tmp_path / "runs" / "clip" / ADDITIONAL_WEIGHTS).exists()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"clip", "clip-run"}
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs"}


def test_a_resumed_run_equals_an_uninterrupted_one(nano_folder, no_progress, tmp_path, monkeypatch):
    """A stopped run that is started again gives the same LoRA and projections; an incomplete checkpoint is skipped."""
    expected, calls = train(nano_folder, no_progress, tmp_path / "whole"), []

    def interrupt(*arguments) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 4:  # at step 3: the first is before all steps
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clip, "_evaluate", interrupt)
        train(nano_folder, no_progress, tmp_path / "cut")
    saved = last_checkpoint(tmp_path / "cut" / "run")
    assert saved.name == "checkpoint-2"
    shutil.copytree(saved, saved.with_name("checkpoint-3"))
    (saved.with_name("checkpoint-3") / "trainer_state.json").unlink()
    resumed = train(nano_folder, no_progress, tmp_path / "cut")
    pairs = [[load_file(folder / WEIGHTS) for folder in (expected, resumed)]]
    pairs += [[torch.load(folder / ADDITIONAL_WEIGHTS, weights_only=True) for folder in (expected, resumed)]]
    for first, second in pairs:
        assert first.keys() == second.keys()
        for name, weight in first.items():
            assert torch.allclose(weight, second[name], rtol=1e-4, atol=1e-6), name


def test_checkpoint_of_another_base(nano_folder, smol_folder, no_progress, tmp_path):
    """A checkpoint that names another base, though all widths agree, gives one line that names a file of it."""
    folder = train(nano_folder, no_progress, tmp_path, steps=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(smol_folder)}))
    with pytest.raises(InputError) as info:
        clip.load(folder)
    assert str(info.value).startswith(f"{folder / ADDITIONAL_WEIGHTS}: ") and "\n" not in str(info.value)


@pytest.mark.parametrize("split", ["valid", "valid_grader"])
def test_evaluation_splits_are_refused(nano_folder, tmp_path, split):
    """Training on an evaluation split is an error."""
    with pytest.raises(InputError, match=f"^{split}: "):
        train(nano_folder, tmp_path, tmp_path, split=split)


def test_predictions_do_not_depend_on_the_batch(loaded, tiny_data, monkeypatch):
    """Questions in one batch or alone get the same candidate, in the order of the rows."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    rows = list(MultiChoiceQADataset("valid_grader", tiny_data))
    together = clip.predict(model, tokenizer, rows)
    assert together == [clip.predict(model, tokenizer, [row])[0] for row in rows]
    monkeypatch.setattr(clip, "IMAGE_BATCH_SIZE", 2)
    assert clip.predict(model, tokenizer, rows) == together
    reverse = [{**row, "candidates": row["candidates"][::-1]} for row in rows]
    assert [4 - i for i in clip.predict(model, tokenizer, reverse)] == together


def test_test_prints_accuracy_by_type(nano_folder, no_progress, tmp_path, monkeypatch, capsys):
    """`test` prints accuracy in total and by the type of the true caption, and writes every prediction."""
    folder = train(nano_folder, no_progress, tmp_path, steps=1)
    rows = MultiChoiceQADataset("valid_grader", no_progress).rows
    correct = [row["correct_index"] for row in rows]
    monkeypatch.setattr(clip, "predict", lambda *_, **__: [*correct[:-1], (correct[-1] + 1) % 5])
    capsys.readouterr()
    clip.test(str(folder), data=str(no_progress), output=str(tmp_path / "out.json"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    accuracy = f"{100 * (len(rows) - 1) / len(rows):.1f}"
    assert lines[3] == ["all", "questions", accuracy, str(len(rows)), accuracy, "66.7-100.0"]
    assert lines[2][:3] == ["ego", accuracy, str(len(rows))]
    rule = "(0 at 20%, 50 from 70% on, linear between; 5 more from 80% to 85%)"
    assert f"the grader's points for {accuracy}%: 53 of 50 {rule}" in map(" ".join, lines)
    assert len(json.loads((tmp_path / "out.json").read_text())) == len(rows)
    with pytest.raises(InputError):
        clip.test(str(tmp_path / "nothing"), data=str(no_progress))
