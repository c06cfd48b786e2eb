"""The output of training and testing: with `--quiet`, and in a log."""

import re
import shutil

import pytest

from homework import finetune
from homework.models.loading import load_base
from homework.training.lora import PeftTrainingModule, add_lora

COMMANDS = (finetune.demo_train, finetune.train, finetune.test)


@pytest.fixture
def adapter(nano_folder, tmp_path):
    """A checkpoint of the VLM."""
    model, _ = load_base(str(nano_folder))
    PeftTrainingModule(add_lora(model, 4, str(nano_folder))).save_adapter(tmp_path / "vlm")
    return tmp_path / "vlm"


def test_training_says_nothing_quietly_and_little_in_a_log(call, nano_folder, tiny_data, tmp_path):
    flags = ["--base", nano_folder, "--data", tiny_data, "--steps", 2, "--batch_size", 3, "--rank", 2]
    flags += ["--progress_questions", 5, "--output", tmp_path / "vlm", "--run-dir", tmp_path / "work"]
    status, out, err = call(COMMANDS, "train", *flags, "--quiet")
    assert (status, out, err) == (0, "", "")
    shutil.rmtree(tmp_path / "vlm")
    status, out, err = call(COMMANDS, "train", *flags)
    assert status == 0 and "loss" in out and f"saved {tmp_path / 'vlm'}" in out
    assert err == "" and len(out.splitlines()) < 10


def test_test_prints_its_table_alone(call, adapter, tiny_data):
    status, out, err = call(COMMANDS, "test", adapter, "--data", tiny_data, "--quiet")
    assert status == 0 and err == ""
    assert out.startswith(f"{adapter} on valid_grader: 5 questions") and len(out.splitlines()) == 12


def test_demo_train_ends_with_an_adapter(call, nano_folder, tiny_data, tmp_path, monkeypatch):
    """Five pairs, ten steps, below the folder that it is run from; it ends with the loss, and trains each time."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        status, out, err = call(COMMANDS, "demo_train", "--base", nano_folder, "--data", tiny_data)
        assert status == 0 and "saved runs/demo" in out and "accuracy" not in out, err
        *_, trained, _, last = out.splitlines()
        assert re.match(r"trained in 0:00:\d\d; the loss fell from \d+\.\d+ to \d+\.\d+$", trained), trained
        assert last == "all is set up; next: python -m homework.finetune train"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"demo", "demo-run"}
    assert (tmp_path / "runs" / "demo" / "adapter_model.safetensors").exists()
