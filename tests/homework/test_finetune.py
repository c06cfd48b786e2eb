"""Test homework.finetune: checkpoints, resuming, rejected input, and the table that `test` prints."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from homework import finetune
from homework.base_vlm import BaseVLM
from homework.labels.rows import SAMPLE_MARKER, VQADataset
from homework.models import loading
from homework.models.loading import load_base, load_model, load_processor
from homework.models.runs import last_checkpoint
from homework.training import checkpoints, trainer
from homework.training.packing import PackedVQADataset
from homework.utils.errors import InputError
from homework.utils.io import read_json
from tests.tiny_models import save_adapter

WEIGHTS = "adapter_model.safetensors"


def train(base: Path, data: Path, folder: Path, steps: int = 4, **settings) -> Path:
    """Train a few steps; return the adapter's folder."""
    settings = {"batch_size": 3, "learning_rate": 0.02, "rank": 4, "progress_questions": 5} | settings
    finetune.train(
        str(base), data=str(data), output=str(folder / "vlm"), run_dir=str(folder / "run"), steps=steps, **settings
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
    """Interrupt training in its `number`-th evaluation after a step, before that step is saved."""
    evaluate, calls = finetune._evaluate, []

    def interrupt(*arguments) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 1 + number:  # the first is before all steps
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(finetune, "_evaluate", interrupt)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers about each other
def test_checkpoint_loads_with_plain_peft(base_folder, tiny_data, tmp_path):
    """peft itself reads a trained folder, and the answers are those of BaseVLM."""
    folder = train(base_folder, tiny_data, tmp_path)
    assert {"adapter_config.json", WEIGHTS} <= {file.name for file in folder.iterdir()}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base_folder)
    rows = VQADataset("valid_grader", tiny_data)
    images, questions = [row["image_path"] for row in rows], [row["question"] for row in rows]
    vlm = BaseVLM(folder)
    answers = vlm.answer(images, questions)
    if base_folder.name == "tiny_nano":
        base = load_model(str(base_folder))
    else:
        base = AutoModelForImageTextToText.from_pretrained(base_folder, dtype=torch.float32)
    by_peft = BaseVLM.from_parts(PeftModel.from_pretrained(base, folder).eval(), load_processor(str(base_folder)))
    assert by_peft.answer(images, questions) == [texts[0] for texts in by_peft.generate(images, questions)] == answers
    assert BaseVLM(base_folder).answer(images, questions) != answers  # the adapter has an effect
    assert isinstance(vlm.model, torch.nn.Module) and not vlm.model.training
    assert finetune.load(folder).answer(images, questions) == answers


def test_training_leaves_a_curve_and_no_checkpoints(nano_folder, with_progress, tmp_path):
    """The output has date, config and curve of its training; the run's folder keeps only TensorBoard's files."""
    folder = train(nano_folder, with_progress, tmp_path)
    manifest = json.loads((folder / "training.json").read_text())
    assert manifest.keys() == {"date", "config", "curve"}
    assert manifest["config"]["base"] == str(nano_folder) and manifest["config"]["steps"] == 4
    assert time.strptime(manifest["date"], "%Y-%m-%d %H:%M")
    assert any("eval_accuracy" in row for row in manifest["curve"])
    assert any("loss" in row for row in manifest["curve"])
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(
    ("output", "expected"), [(None, {"runs/vlm", "runs/vlm-run"}), ("mine/vlm", {"mine/vlm", "mine/vlm-run"})]
)
def test_training_writes_only_to_its_two_folders(nano_folder, no_progress, tmp_path, monkeypatch, output, expected):
    """By default these are runs/vlm and runs/vlm-run in the working directory; shipped weights stay as they are."""
    shipped = {file: file.stat().st_mtime_ns for file in loading.WEIGHTS.rglob("*")}
    load_base(str(nano_folder)), PackedVQADataset.of_split("train", no_progress)  # fills the pixel cache
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = set(tmp_path.rglob("*"))
    finetune.train(
        str(nano_folder), data=str(no_progress), steps=1, batch_size=3, **({"output": output} if output else {})
    )
    new = {file.relative_to(tmp_path / "cwd") for file in set(tmp_path.rglob("*")) - before}
    assert {str(Path(*file.parts[:2])) for file in new if len(file.parts) > 1} == expected
    assert (Path(min(expected, key=len)) / WEIGHTS).exists()
    assert {file: file.stat().st_mtime_ns for file in loading.WEIGHTS.rglob("*")} == shipped


def test_demo_training_writes_to_runs_demo(nano_folder, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune.demo_train(str(nano_folder), data=str(tiny_data))
    assert (tmp_path / "runs" / "demo" / WEIGHTS).exists()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"demo", "demo-run"}


def test_loss_decreases(base_folder, no_progress, tmp_path):
    """A few steps on a few questions lower their loss."""
    folder = train(base_folder, no_progress, tmp_path, batch_size=9)
    losses = [row["loss"] for row in json.loads((folder / "training.json").read_text())["curve"] if "loss" in row]
    assert losses[-1] < 0.97 * losses[0]


def test_only_adapters_change(adapted):
    """Only LoRA's weights are trained, in both encoders; embedding, output layer and prediction heads are frozen."""
    names = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in names)
    parts = {part for name in names for part in name.split(".")}
    assert {"vision_encoder", "language_model"} <= parts or {"vision_model", "text_model"} <= parts
    assert not parts & {"lm_head", "embed_tokens", "prediction_heads"}


def test_a_resumed_run_equals_an_uninterrupted_one(nano_folder, tiny_data, tmp_path, monkeypatch, caplog):
    """A stopped run that is started again gives the same weights; an incomplete checkpoint is skipped."""
    expected = train(nano_folder, tiny_data, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path / "cut")
    run_dir = tmp_path / "cut" / "run"
    assert not (tmp_path / "cut" / "vlm").exists()  # the output holds no incomplete adapter
    saved = last_checkpoint(run_dir)
    assert saved == run_dir / "checkpoint-2"
    # a crash while step 3 is saved leaves weights, but not yet the trainer's state
    shutil.copytree(saved, run_dir / "checkpoint-3")
    (run_dir / "checkpoint-3" / "trainer_state.json").unlink()
    (run_dir / "checkpoint-3" / WEIGHTS).write_bytes(b"half")
    with caplog.at_level(logging.INFO, "homework"):
        resumed = train(nano_folder, tiny_data, tmp_path / "cut")
    assert f"resuming at step 2 of 4, from {saved}" in caplog.messages
    assert_same_weights(expected, resumed)


def test_interrupted_while_checkpoints_are_removed(nano_folder, no_progress, tmp_path, monkeypatch):
    """A run interrupted at its very end leaves no checkpoint that lacks its optimizer but counts as complete."""

    def interrupt(checkpoint: Path) -> None:
        (checkpoint / "optimizer.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "shutil", SimpleNamespace(rmtree=interrupt))
        train(nano_folder, no_progress, tmp_path)
    saved = last_checkpoint(tmp_path / "run")
    assert saved is None or (saved / "optimizer.pt").exists()
    first = shutil.copytree(tmp_path / "vlm", tmp_path / "first")
    assert_same_weights(first, train(nano_folder, no_progress, tmp_path))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_other_settings_do_not_resume_a_run(nano_folder, tiny_data, tmp_path, monkeypatch):
    """An unfinished run is not resumed with another config."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at_evaluation(patch, 3)
        train(nano_folder, tiny_data, tmp_path)
    with pytest.raises(InputError, match="unfinished run with other settings: --rank was 4, is 8; resume with") as info:
        train(nano_folder, tiny_data, tmp_path, rank=8)
    assert one_line(info.value, tmp_path / "run")


def test_a_new_run_replaces_the_old_adapter(nano_folder, no_progress, tmp_path):
    """Training again into the same folder leaves one complete adapter in it, and the one before beside it."""
    first = load_file(train(nano_folder, no_progress, tmp_path, steps=1) / WEIGHTS)
    second = load_file(train(nano_folder, no_progress, tmp_path, steps=1, seed=5) / WEIGHTS)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert all(
        torch.equal(first[name], weight) for name, weight in load_file(tmp_path / "vlm-previous" / WEIGHTS).items()
    )


def test_without_a_valid_split(nano_folder, no_progress, tmp_path):
    """Training works without anything to evaluate on."""
    assert (train(nano_folder, no_progress, tmp_path, steps=1) / WEIGHTS).exists()


@pytest.mark.parametrize("split", ["valid", "valid_grader", "../data/valid"])
def test_evaluation_splits_are_refused(nano_folder, tmp_path, split):
    """Training on an evaluation split is an error before anything is written."""
    with pytest.raises(InputError) as info:
        train(nano_folder, tmp_path, tmp_path, split=split)
    assert one_line(info.value, split)
    assert not list(tmp_path.iterdir())


def test_adapter_of_another_base(smol_folder, nano_folder, no_progress, tmp_path):
    """An adapter that names another base gives one line that names its folder."""
    folder = train(nano_folder, no_progress, tmp_path, steps=1)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(smol_folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as info:
        BaseVLM(folder)
    assert one_line(info.value, folder)


@pytest.fixture(scope="module")
def adapter(nano_folder, tmp_path_factory) -> Path:
    """Return an untrained adapter of the tiny TuxNano; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(nano_folder, folder)
    return folder


@pytest.mark.parametrize("damage", ["weights missing", "weights broken", "config broken", "no base named", "base gone"])
def test_broken_adapter(adapter, tmp_path, damage):
    """A broken checkpoint gives one line that names a file of it, or its base."""
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
def test_unreadable_base(base_folder, tmp_path, content):
    """An unreadable base gives one line that names it, or a file of it."""
    base = tmp_path / "base"
    if content != "nothing":
        shutil.copytree(base_folder, base)
    if content == "no weights":
        (base / "model.safetensors").unlink()
    elif content == "broken weights":
        (base / "model.safetensors").write_bytes(b"broken")
    elif content == "broken config":
        (base / "config.json").write_text("{")
    with pytest.raises(InputError) as info:
        BaseVLM(base)
    assert "\n" not in str(info.value) and str(info.value).startswith(str(base))


def test_pickled_base_is_not_read(base_folder, tmp_path):
    """A base whose weights are a pickle is refused: unpickling could run code."""
    shutil.copytree(base_folder, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError):
        load_base(str(tmp_path / "base"))


def test_a_checkpoint_of_tux_nano_names_no_path(nano_folder, tmp_path, monkeypatch):
    """A checkpoint of the bundled base works after the folder has moved."""
    bundled = tmp_path / "here" / "tux_nano"
    shutil.copytree(nano_folder, bundled)
    monkeypatch.setattr(loading, "DEFAULT_BASE", str(bundled))
    save_adapter(bundled, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tux_nano"
    (tmp_path / "there").mkdir()
    moved = bundled.rename(tmp_path / "there" / "tux_nano")
    monkeypatch.setattr(loading, "DEFAULT_BASE", str(moved))
    monkeypatch.chdir(tmp_path)
    BaseVLM(tmp_path / "adapter")


def test_test_prints_prefix_and_exact_match(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """`test` prints prefix match and exact match, in total and by question type."""
    rows = VQADataset("valid_grader", tiny_data)
    # the number of karts is a prefix match, but not an exact match
    answers = [row["answer"] + ("0" if "scenario" in row["question"] else "") for row in rows]
    answers[-1] = "nonsense"
    monkeypatch.setattr(BaseVLM, "answer", lambda *_: answers)
    finetune.test(str(nano_folder), data=str(tiny_data), output=str(tmp_path / "answers.json"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {" ".join(line[:-7]): line[-7:] for line in lines[2:7]}
    assert lines[0][-3:] == ["valid_grader:", str(len(rows)), "questions"]
    assert lines[1] == ["prefix", "exact", "chance", "majority", "n", "once", "95", "%"]
    assert table["total"] == ["100.0", "0.0", "100.0", "100.0", "1", "100.0", "100.0-100.0"]
    assert table["ego"][:5] == ["100.0", "100.0", "100.0", "100.0", "1"]
    assert set(table) == {"ego", "total", "track", "relation", "count"}
    # each type has one question, so resampling within types changes nothing
    assert lines[7] == ["mean", "of", "types", "80.0", "60.0", "100.0", "100.0", "80.0", "80.0-80.0"]
    assert lines[8][:7] == ["all", "questions", "80.0", "60.0", "100.0", "100.0", "5"]
    points = "the grader's points for 80.0%: 50 of 50 (0 at 0%, 50 from 70% on, linear between)"
    assert points in map(" ".join, lines)
    written = json.loads((tmp_path / "answers.json").read_text())
    assert written["accuracy"] == 0.8 and [s["model_answer"] for s in written["samples"]] == answers


def test_the_samples_set_is_not_taken_for_the_official_one(nano_folder, tiny_data, monkeypatch, capsys):
    """The title of `test` says so where the sample is unpacked; a split of one's own is not the sample's."""
    monkeypatch.setattr(BaseVLM, "answer", lambda *_: [row["answer"] for row in rows])
    (tiny_data / SAMPLE_MARKER).touch()
    (tiny_data / "valid_mine").symlink_to(tiny_data / "valid_grader")
    for split, note in (("valid_grader", " (the sample's, not the official set)"), ("valid_mine", "")):
        rows = VQADataset(split, tiny_data)
        finetune.test(str(nano_folder), split, str(tiny_data))
        title = capsys.readouterr().out.splitlines()[0]
        assert title == f"{nano_folder} on {split}{note}: {len(rows)} questions"


def test_test_on_all_questions(nano_folder, tiny_data, capsys):
    """`test --all-questions` generates every question about the frames except counts of 0."""
    finetune.test(str(nano_folder), "valid", str(tiny_data), all_questions=True)
    rows = finetune.generate_questions("valid", tiny_data)
    out = capsys.readouterr().out
    assert f"all of valid: {len(rows)} questions, without counts of 0" in out and "grader's points" not in out
    assert 0 < len(rows) <= len(VQADataset("valid", tiny_data)) and not any(row["answer"] == "0" for row in rows)


@pytest.mark.parametrize("change", ["none", "one less", "one more"])
def test_every_weight_of_an_adapter_has_its_layer(adapter, tmp_path, change):
    """An adapter with one weight less or more is of another base, even if all others fit."""
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
    """Train in separate processes; return the loss curve."""
    command = [sys.executable, "-m", *launcher, "homework.finetune", "train", "--base", nano_folder, "--data", data]
    command += ["--steps", 5, "--batch-size", batch_size, "--output", folder / "out", "--run-dir", folder / "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    root = Path(finetune.__file__).parents[1]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return [row["loss"] for row in read_json(folder / "out/training.json")["curve"] if "loss" in row]


TWO_PROCESSES = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m"]


@pytest.mark.slow
def test_two_processes_train_as_one(nano_folder, no_progress, tmp_path):
    """`accelerate launch` with two processes has the loss curve of one process with the same batch."""
    one = trained_losses(nano_folder, no_progress, tmp_path / "one", [])
    two = trained_losses(nano_folder, no_progress, tmp_path / "two", TWO_PROCESSES)
    assert len(one) == 5 and two == pytest.approx(one, rel=1e-3)


def test_a_batch_that_cannot_be_split_among_processes(nano_folder, no_progress, tmp_path, monkeypatch):
    """A batch of 5 views for 2 processes is one line, before anything is trained."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--batch-size: 5 views cannot be split evenly among 2 processes"):
        finetune.train(str(nano_folder), data=str(no_progress), steps=1, batch_size=5)


def test_tux_nano_trains_for_fewer_steps_by_default(base_folder, nano_folder, no_progress, tmp_path, monkeypatch):
    """Its vision encoder has memorised `train`, so that longer training makes it overconfident."""
    configs = []
    monkeypatch.setattr(trainer, "fit", lambda module, dataset, collate, config, *_: configs.append(config))
    finetune.train(str(base_folder), data=str(no_progress), output=str(tmp_path / "vlm"))
    assert configs[0].steps == (160 if base_folder == nano_folder else 240)
