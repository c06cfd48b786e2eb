"""Test `export model`: merged weights answer as the adapter does, the card, and the upload to a hub."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from export.model import load_clip, model
from homework.base_vlm import BaseVLM
from homework.clip import load_with_tokenizer
from homework.models.loading import load_base, unwrap
from homework.training.lora import PeftTrainingModule
from homework.utils.errors import InputError
from homework.utils.io import read_json, write_json
from tests.conftest import assert_one_line_error
from tests.export.fake_hub import TOKEN, fake_hub
from tests.tiny_models import features, randomly_adapted, save_clip

QUESTIONS = ["What kart is the ego car?", "What track is this?", "How many karts are there in the scenario?"]


def save_random_adapter(base: Path, folder: Path) -> Path:
    """Write an adapter that changes a base's answers, with a training record."""
    PeftTrainingModule(randomly_adapted(load_base(str(base))[0], base)).save_adapter(folder)
    config = {"base": str(base), "steps": 160, "learning_rate": 5e-4, "data_fingerprint": None}
    write_json(folder / "training.json", {"date": "2026-12-01 07:00", "config": config, "curve": []})
    return folder


def in_float32(base: Path, folder: Path) -> Path:
    """Copy a base with its weights in float32: merging into bfloat16 rounds them, which changes random answers."""
    shutil.copytree(base, folder)
    weights = {name: weight.float() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_merged_vlm_answers_as_its_adapter(base_folder, tiny_data, views, tmp_path):
    """Both architectures; the merged folder needs no base and no peft."""
    base_folder = in_float32(base_folder, tmp_path / "base")
    adapter = save_random_adapter(base_folder, tmp_path / "adapter")
    model(str(adapter), output=tmp_path / "merged", data=tiny_data)
    merged = BaseVLM(tmp_path / "merged")
    assert not any("lora" in name for name, _ in merged.model.named_parameters())
    images, questions = zip(*((view, question) for view in views for question in QUESTIONS), strict=True)
    answers = BaseVLM(adapter).answer(images, questions)
    assert merged.answer(images, questions) == answers != BaseVLM(base_folder).answer(images, questions)


def test_a_smolvlm_loads_by_transformers_alone(smol_folder, tiny_data, views, tmp_path):
    """Processor, chat template and model give the same answer as ours without any of our code."""
    smol_folder = in_float32(smol_folder, tmp_path / "base")
    adapter = save_random_adapter(smol_folder, tmp_path / "adapter")
    model(str(adapter), output=tmp_path / "merged", data=tiny_data)
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=prompt, images=[Image.open(views[0]).convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        ids = plain.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = processor.decode(ids, skip_special_tokens=True).strip()
    assert [answer] == BaseVLM(adapter).answer(views[:1], QUESTIONS[:1])


def test_a_merged_clip_gives_the_same_features(base_folder, tiny_data, views, tmp_path):
    save_clip(base_folder, tmp_path / "clip")
    model(str(tmp_path / "clip"), output=tmp_path / "merged", data=tiny_data)
    expected = features(
        unwrap(load_with_tokenizer(tmp_path / "clip")[0]), load_base(str(base_folder))[1].tokenizer, views
    )
    for found, value in zip(features(*load_clip(tmp_path / "merged"), views), expected, strict=True):
        assert torch.allclose(found, value, atol=1e-5)
    assert "9 multiple-choice questions" not in (card := (tmp_path / "merged/README.md").read_text())
    assert "| all |" in card and "load_clip" in card
    (tmp_path / "merged/clip.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="not a merged CLIP"):
        load_clip(tmp_path / "merged")


def test_the_card_has_recipe_and_scores(nano_folder, tiny_data, tmp_path):
    """Or says that nothing was measured; values that are not known are left out."""
    adapter = save_random_adapter(nano_folder, tmp_path / "adapter")
    for split in ("valid_grader", "nowhere"):
        model(str(adapter), output=tmp_path / "merged", data=tiny_data, split=split)
        card = (tmp_path / "merged/README.md").read_text()
        assert "| steps | 160 |" in card and "fingerprint" not in card and "Finished 2026-12-01" in card
        assert ("| all | " in card) == (split == "valid_grader") != ("Not measured" in card)
    assert read_json(tmp_path / "merged/export.json")["kind"] == "model"


def test_push_uploads_every_file(call, nano_folder, tmp_path, monkeypatch):
    """To a private repository, again into the same one; a refusal is one line, and the folder stays."""
    adapter, output = save_random_adapter(nano_folder, tmp_path / "adapter"), tmp_path / "merged"
    command = ("model", adapter, "--output", output, "--data", tmp_path, "--push", "me/tux")
    with fake_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the hub here has plain LFS only
        for token in (TOKEN, TOKEN, "wrong"):
            monkeypatch.setenv("HF_TOKEN", token)
            status, out, err = call((model,), *command)
            assert (status == 0) == (token == TOKEN), err
        assert hub.repositories.keys() == {"me/tux"} and hub.repositories["me/tux"]["private"]
        uploaded = hub.repositories["me/tux"]["files"]
    assert_one_line_error((status, out, err), "hf auth login")
    files = {file.name: file.read_bytes() for file in output.iterdir()}
    assert uploaded == files and "# me/tux" in files["README.md"].decode()


def test_a_base_is_not_a_checkpoint(call, nano_folder, tmp_path):
    assert_one_line_error(call((model,), "model", nano_folder, "--output", tmp_path / "out"), "not an adapter")
    assert not (tmp_path / "out").exists()
