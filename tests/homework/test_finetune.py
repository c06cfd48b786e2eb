"""LoRA training of the VLM: checkpoints, resuming, refusals, and what `test` prints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from homework import finetune
from homework.base_vlm import BaseVLM
from homework.labels.rows import VQADataset
from homework.models import loading as checkpoint
from homework.models.loading import load_base
from homework.training import trainer as training
from homework.training.lora import PeftTrainingModule, add_lora
from homework.training.trainer import last_checkpoint
from homework.utils.errors import InputError
from homework.utils.io import read_json

WEIGHTS = "adapter_model.safetensors"


def train(base: Path, data: Path, folder: Path, steps: int = 4, **settings) -> Path:
    """Train for a moment; the adapter's folder."""
    settings = {"batch_size": 3, "learning_rate": 0.02, "rank": 4, "progress_questions": 5} | settings
    finetune.train(
        str(base), data=str(data), output=str(folder / "vlm"), run_dir=str(folder / "work"), steps=steps, **settings
    )
    return folder / "vlm"


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert first.keys() == second.keys() and len(first) > 20
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], rtol=1e-4, atol=1e-6), name


def one_line(error: InputError, name: object) -> bool:
    return "\n" not in str(error) and str(error).startswith(f"{name}: ")


def stop_at_evaluation(monkeypatch, number: int) -> None:
    """Make training die in its `number`-th evaluation, before that step is saved."""
    score, asked = finetune._evaluate, []

    def dying(*arguments) -> dict[str, float]:
        asked.append(1)
        if len(asked) == number:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(finetune, "_evaluate", dying)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers about each other
def test_checkpoint_loads_with_plain_peft(base_folder, tiny_data, tmp_path):
    """A trained folder is what PEFT itself reads, with the same answers as BaseVLM gives."""
    folder = train(base_folder, tiny_data, tmp_path)
    assert {"adapter_config.json", WEIGHTS} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    rows = VQADataset("valid_grader", tiny_data)
    images, questions = [row["image_path"] for row in rows], [row["question"] for row in rows]
    vlm = BaseVLM(folder)
    answers = vlm.answer(images, questions)
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base_folder, dtype=torch.float32), folder
    ).eval()
    by_peft = BaseVLM.from_parts(plain, vlm.stock[1])
    assert by_peft.answer(images, questions) == [texts[0] for texts in by_peft.generate(images, questions)] == answers
    assert BaseVLM(base_folder).answer(images, questions) != answers  # so the adapter does something
    assert isinstance(vlm.model, torch.nn.Module) and not vlm.model.training
    assert finetune.load(folder).answer(images, questions) == answers


def test_training_leaves_a_curve_and_no_checkpoints(nano_folder, tiny_data, tmp_path):
    """The folder says how it was trained; the working folder keeps TensorBoard's files only."""
    folder = train(nano_folder, tiny_data, tmp_path)
    told = json.loads((folder / "training.json").read_text())
    assert told["recipe"]["base"] == str(nano_folder) and told["recipe"]["steps"] == 4
    assert any("eval_accuracy" in row for row in told["curve"]) and any("loss" in row for row in told["curve"])
    assert list((tmp_path / "work").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "work").glob("checkpoint-*"))
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_loss_falls(base_folder, no_progress, tmp_path):
    """A few steps on a few questions lower their loss."""
    folder = train(base_folder, no_progress, tmp_path, batch_size=9)
    losses = [row["loss"] for row in json.loads((folder / "training.json").read_text())["curve"] if "loss" in row]
    assert losses[-1] < 0.97 * losses[0]


def test_only_adapters_change(adapted):
    """LoRA trains its own weights alone, in both encoders; embedding and language head stay as they are."""
    names = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in names)
    assert {"vision_model", "text_model"} <= {part for name in names for part in name.split(".")}
    assert not any("lm_head" in name or "embed_tokens" in name for name in names)


def test_resumed_run_is_the_undisturbed_one(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """Stopped and run again: the same weights; a half-written checkpoint is passed over."""
    expected = train(nano_folder, tiny_data, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path / "cut")
    work = tmp_path / "cut" / "work"
    assert not (tmp_path / "cut" / "vlm").exists()  # nothing half-written in the output
    saved = last_checkpoint(work)
    assert saved == work / "checkpoint-2"
    # a crash in the middle of saving step 3: weights, but not yet the trainer's state
    shutil.copytree(saved, work / "checkpoint-3")
    (work / "checkpoint-3" / "trainer_state.json").unlink()
    (work / "checkpoint-3" / WEIGHTS).write_bytes(b"half")
    capsys.readouterr()
    resumed = train(nano_folder, tiny_data, tmp_path / "cut")
    assert f"going on from {saved}" in capsys.readouterr().out
    assert_same_weights(expected, resumed)


def test_stopped_while_checkpoints_are_removed(nano_folder, no_progress, tmp_path, monkeypatch):
    """A run that dies at its very end leaves no checkpoint without an optimizer that passes for a whole one."""

    def dying(checkpoint: Path) -> None:
        (checkpoint / "optimizer.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "shutil", SimpleNamespace(rmtree=dying))
        train(nano_folder, no_progress, tmp_path)
    saved = last_checkpoint(tmp_path / "work")
    assert saved is None or (saved / "optimizer.pt").exists()
    first = shutil.copytree(tmp_path / "vlm", tmp_path / "first")
    assert_same_weights(first, train(nano_folder, no_progress, tmp_path))


def test_other_settings_do_not_go_on(nano_folder, tiny_data, tmp_path, monkeypatch):
    """An unfinished run is not gone on with under another recipe."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path)
    with pytest.raises(InputError) as info:
        train(nano_folder, tiny_data, tmp_path, rank=8)
    assert one_line(info.value, tmp_path / "work")


def test_a_new_run_replaces_the_old_adapter(nano_folder, no_progress, tmp_path):
    """Training again into the same folder leaves one whole adapter."""
    first = load_file(train(nano_folder, no_progress, tmp_path, steps=1) / WEIGHTS)
    second = load_file(train(nano_folder, no_progress, tmp_path, steps=1, seed=5) / WEIGHTS)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_without_a_valid_split(nano_folder, no_progress, tmp_path):
    """Training works where there is nothing to watch it on."""
    assert (train(nano_folder, no_progress, tmp_path, steps=1) / WEIGHTS).exists()


@pytest.mark.parametrize("split", ["valid", "valid_grader", "../data/valid"])
def test_valid_splits_are_refused(nano_folder, tmp_path, split):
    """What is measured on is not trained on."""
    with pytest.raises(InputError) as info:
        train(nano_folder, tmp_path, tmp_path, split=split)
    assert one_line(info.value, split)
    assert not list(tmp_path.iterdir())


def test_adapter_of_another_base(smol_folder, nano_folder, tiny_data, tmp_path):
    """An adapter whose base is another: one line that names its folder."""
    folder = train(nano_folder, tiny_data, tmp_path, steps=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(smol_folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as info:
        BaseVLM(folder)
    assert one_line(info.value, folder)


@pytest.fixture(scope="module")
def adapter(nano_folder, tmp_path_factory) -> Path:
    """A new adapter of the tiny base; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("adapter")
    PeftTrainingModule(add_lora(load_base(str(nano_folder))[0], 2, str(nano_folder))).save_adapter(folder)
    return folder


@pytest.mark.parametrize("damage", ["weights missing", "weights broken", "config broken", "no base named", "base gone"])
def test_broken_adapter(adapter, tmp_path, damage):
    """A broken checkpoint: one line that names a file of it, or its base."""
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "adapter_config.json"
    if damage == "weights missing":
        (tmp_path / WEIGHTS).unlink()
    elif damage == "weights broken":
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:1000])
    elif damage == "config broken":
        config.write_text("{")
    else:
        settings = json.loads(config.read_text())
        settings["base_model_name_or_path"] = None if damage == "no base named" else str(tmp_path / "gone")
        config.write_text(json.dumps(settings))
    with pytest.raises(InputError) as info:
        BaseVLM(tmp_path)
    assert str(tmp_path) in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("content", ["nothing", "no weights", "broken weights", "broken config"])
def test_unreadable_base(nano_folder, tmp_path, content):
    """A base that can't be read: one line that names it."""
    base = tmp_path / "base"
    if content != "nothing":
        shutil.copytree(nano_folder, base)
    if content == "no weights":
        (base / "model.safetensors").unlink()
    elif content == "broken weights":
        (base / "model.safetensors").write_bytes(b"broken")
    elif content == "broken config":
        (base / "config.json").write_text("{")
    with pytest.raises(InputError) as info:
        BaseVLM(base)
    assert one_line(info.value, base)


def test_pickled_base_is_not_read(nano_folder, tmp_path):
    """A base whose weights are a pickle is refused: unpickling could run code."""
    shutil.copytree(nano_folder, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError):
        load_base(str(tmp_path / "base"))


def test_embedded_base_is_found_wherever_it_lies(nano_folder, tmp_path, monkeypatch):
    """A checkpoint of the embedded base names no path, so it works in another place."""
    embedded = tmp_path / "here" / "tux_nano"
    shutil.copytree(nano_folder, embedded)
    monkeypatch.setattr(checkpoint, "DEFAULT_BASE", str(embedded))
    model, _ = load_base(str(embedded))
    PeftTrainingModule(add_lora(model, 2, str(embedded))).save_adapter(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tux_nano"
    (tmp_path / "there").mkdir()
    moved = embedded.rename(tmp_path / "there" / "tux_nano")
    monkeypatch.setattr(checkpoint, "DEFAULT_BASE", str(moved))
    monkeypatch.chdir(tmp_path)
    BaseVLM(tmp_path / "adapter")


def test_test_prints_kinds_strict_and_prefix(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """`test` prints, in total and by kind, the prefix rule and the strict one."""
    rows = VQADataset("valid_grader", tiny_data)
    # right by the prefix rule, but wrong strictly, for the number of karts
    answers = [row["answer"] + ("0" if "scenario" in row["question"] else "") for row in rows]
    answers[-1] = "nonsense"
    monkeypatch.setattr(BaseVLM, "answer", lambda *_: answers)
    finetune.test(str(nano_folder), data=str(tiny_data), output=str(tmp_path / "answers.json"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {" ".join(line[:-4]): line[-4:] for line in lines[2:7]}
    assert lines[0][-3:] == ["valid_grader:", str(len(rows)), "questions"]
    assert lines[1] == ["prefix", "strict", "n", "95", "%"]
    assert table["total"] == ["100.0", "0.0", "1", "20.7-100.0"] and table["ego"][:3] == ["100.0", "100.0", "1"]
    assert set(table) == {"ego", "total", "track", "relation", "count"}
    assert lines[7] == [
        "mean",
        "of",
        "kinds",
        "80.0",
        "60.0",
        "80.0-80.0",
    ]  # no question of a kind differs from another
    assert lines[8][:5] == ["all", "questions", "80.0", "60.0", "5"]
    told = json.loads((tmp_path / "answers.json").read_text())
    assert told["accuracy"] == 0.8 and [s["model_answer"] for s in told["samples"]] == answers


def test_test_of_a_whole_split(nano_folder, tiny_data, capsys):
    """`test --whole` asks everything about the frames but counts of 0."""
    finetune.test(str(nano_folder), "valid", str(tiny_data), whole=True)
    rows = finetune.all_questions("valid", tiny_data)
    assert f"all of valid: {len(rows)} questions" in capsys.readouterr().out
    assert 0 < len(rows) <= len(VQADataset("valid", tiny_data)) and not any(row["answer"] == "0" for row in rows)


@pytest.mark.parametrize("change", ["none", "one less", "one more"])
def test_every_weight_of_an_adapter_has_its_place(adapter, nano_folder, tmp_path, change):
    """Weights that lack a layer, or have one too many, are of another base, even where the others fit."""
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / WEIGHTS)
    name = next(iter(weights))
    if change == "one less":
        del weights[name]
    elif change == "one more":
        weights[name.replace("model.", "model.other.", 1)] = weights[name].clone()
    save_file(weights, tmp_path / WEIGHTS)
    if change == "none":
        BaseVLM(tmp_path)
        return
    with pytest.raises(InputError) as info:
        BaseVLM(tmp_path)
    assert one_line(info.value, tmp_path)


def trained_losses(nano_folder, data, folder, launcher: list[str], batch_size: int = 4) -> list[float]:
    """The loss curve of a short training in processes of its own."""
    command = [sys.executable, "-m", *launcher, "homework.finetune", "train", "--base", nano_folder, "--data", data]
    command += ["--steps", 5, "--batch-size", batch_size, "--output", folder / "out", "--run-dir", folder / "work"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(finetune.__file__).parents[1]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return [row["loss"] for row in read_json(folder / "out/training.json")["curve"] if "loss" in row]


TWO_PROCESSES = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]


@pytest.mark.slow
def test_two_processes_train_as_one(nano_folder, no_progress, tmp_path):
    """`accelerate launch` over two processes has the loss curve of one with the same batch."""
    one = trained_losses(nano_folder, no_progress, tmp_path / "one", [])
    two = trained_losses(nano_folder, no_progress, tmp_path / "two", TWO_PROCESSES)
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-3)


def test_batch_that_processes_cannot_share(nano_folder, no_progress, monkeypatch):
    """A batch of 5 views for 2 processes: one line, before anything is trained."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--batch-size: 5 views can't be shared evenly by 2 processes"):
        finetune.train(str(nano_folder), data=str(no_progress), steps=1, batch_size=5)


def test_a_base_that_recognises_takes_fewer_steps(loaded, base_folder, nano_folder):
    """By default; it knows every view of `train`, and learns of them to be too sure."""
    assert finetune.default_steps(loaded[0]) == (160 if base_folder == nano_folder else 240)
