"""CLIP: training, checkpoints, and the grader's crop."""

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
from homework.training import trainer as training
from homework.training.trainer import last_checkpoint
from homework.utils.errors import InputError
from tests.tiny_models import build_clip, features

WEIGHTS = "adapter_model.safetensors"


def train(base: Path, data: Path, folder: Path, steps: int = 4, **settings) -> Path:
    """Train for a moment; the checkpoint's folder."""
    settings = {"batch_size": 3, "learning_rate": 0.02, "rank": 4} | settings
    clip.train(
        str(base), data=str(data), output=str(folder / "clip"), run_dir=str(folder / "work"), steps=steps, **settings
    )
    return folder / "clip"


@pytest.mark.parametrize("size", [(150, 100), (600, 400), (100, 150), (301, 201), (192, 192), (193, 195), (40, 31)])
def test_clip_pixels_are_the_graders(size):
    """Short side to 192, centre crop, mean and deviation 0.5: as torchvision's Resize and CenterCrop do it."""
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


def test_trained_checkpoint_is_what_was_trained(base_folder, loaded, no_progress, tmp_path, views, monkeypatch):
    """Loading gives the trained features again, as a PEFT model whose `.model` is the CLIP."""
    tokenizer, before, save_adapter_atomically = loaded[1].tokenizer, [], training.save_adapter_atomically

    def recording(module, output, told) -> None:
        before.extend(features(module.base, tokenizer, views))
        save_adapter_atomically(module, output, told)

    monkeypatch.setattr(training, "save_adapter_atomically", recording)
    folder = train(base_folder, no_progress, tmp_path)
    assert {"adapter_config.json", WEIGHTS, ADDITIONAL_WEIGHTS} <= {file.name for file in folder.iterdir()}
    again = clip.load(folder)
    assert type(again.model) is CLIP and not again.model.training and isinstance(again, nn.Module)
    for feature, expected in zip(features(again, tokenizer, views), before, strict=True):
        assert torch.allclose(feature, expected, atol=1e-6)
    assert not torch.allclose(features(build_clip(loaded), tokenizer, views)[0], before[0], atol=1e-2)
    names = {
        k
        for k, p in build_clip(loaded).named_parameters()
        if not k.startswith(("vision_enc", "text_enc", "recogniser"))
    }
    saved = torch.load(folder / ADDITIONAL_WEIGHTS, weights_only=True)
    assert saved.keys() == names and "logit_scale" in names
    # the projections and the temperature are trained, not only LoRA
    fresh = build_clip(loaded).additional_weights()
    assert all(not torch.equal(saved[name], fresh[name]) for name in ("logit_scale", "vision_projection.weight"))


def test_a_vision_encoder_that_recognises_stays_as_it_is(base_folder, loaded, no_progress, tmp_path):
    """LoRA is on both encoders, but on the text's alone where the image's is read by what it recognises."""
    folder, recognises = train(base_folder, no_progress, tmp_path, steps=1), build_clip(loaded).recogniser is not None
    adapted = {name.split(".")[2] for name in load_file(folder / WEIGHTS)}
    assert adapted == ({"text_encoder"} if recognises else {"text_encoder", "vision_encoder"})
    trained, base = clip.load(folder).model.state_dict(), build_clip(loaded).state_dict()
    kept = {name for name in base if name.startswith("recogniser.")}
    assert bool(kept) == recognises and all(torch.equal(trained[name], base[name]) for name in kept)


def test_resumed_run_is_the_undisturbed_one(nano_folder, no_progress, tmp_path, monkeypatch):
    """Stopped and run again: the same LoRA weights and the same projections; half a checkpoint is passed over."""
    expected, asked = train(nano_folder, no_progress, tmp_path / "whole"), []

    def dying(*_) -> dict[str, float]:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(clip, "_evaluate", dying)
        train(nano_folder, no_progress, tmp_path / "cut")
    saved = last_checkpoint(tmp_path / "cut" / "work")
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
    """A checkpoint whose base is another, though all widths agree: one line that names a file of it."""
    folder = train(nano_folder, no_progress, tmp_path, steps=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(smol_folder)}))
    with pytest.raises(InputError) as info:
        clip.load(folder)
    assert str(info.value).startswith(f"{folder / ADDITIONAL_WEIGHTS}: ") and "\n" not in str(info.value)


@pytest.mark.parametrize("split", ["valid", "valid_grader"])
def test_valid_splits_are_refused(nano_folder, tmp_path, split):
    """What is measured on is not trained on."""
    with pytest.raises(InputError, match=f"^{split}: "):
        train(nano_folder, tmp_path, tmp_path, split=split)


def test_predictions_do_not_depend_on_company(loaded, tiny_data, monkeypatch):
    """Questions answered together or alone get the same candidate, in the rows' order."""
    model, tokenizer = build_clip(loaded), loaded[1].tokenizer
    rows = list(MultiChoiceQADataset("valid_grader", tiny_data))
    together = clip.predict(model, tokenizer, rows)
    assert together == [clip.predict(model, tokenizer, [row])[0] for row in rows]
    monkeypatch.setattr(clip, "IMAGE_BATCH_SIZE", 2)
    assert clip.predict(model, tokenizer, rows) == together
    reverse = [{**row, "candidates": row["candidates"][::-1]} for row in rows]
    assert [4 - i for i in clip.predict(model, tokenizer, reverse)] == together


def test_test_prints_kinds(nano_folder, no_progress, tmp_path, monkeypatch, capsys):
    """`test` prints accuracy in total and by the true caption's kind, and writes every prediction."""
    folder = train(nano_folder, no_progress, tmp_path, steps=1)
    rows = MultiChoiceQADataset("valid_grader", no_progress).rows
    right = [row["correct_index"] for row in rows]
    monkeypatch.setattr(clip, "predict", lambda *_, **__: [*right[:-1], (right[-1] + 1) % 5])
    capsys.readouterr()
    clip.test(str(folder), data=str(no_progress), output=str(tmp_path / "out.json"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    share = f"{100 * (len(rows) - 1) / len(rows):.1f}"
    assert lines[-1] == ["all", "questions", share, str(len(rows)), "43.6-97.0"]
    assert lines[2][:3] == ["ego", share, str(len(rows))]
    assert len(json.loads((tmp_path / "out.json").read_text())) == len(rows)
    with pytest.raises(InputError):
        clip.test(str(tmp_path / "nothing"), data=str(no_progress))
