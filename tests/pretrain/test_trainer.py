"""The training loop: resuming, signals, averaged weights."""

import json
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from homework.utils.errors import InputError
from pretrain import trainer
from pretrain.config import CPU_CONFIG, load_config
from pretrain.trainer import train_stage


class Stopped(Exception):
    """Raised to end a run early."""


SCHEDULE = replace(load_config(CPU_CONFIG).stages["vision"], learning_rate=1e-2, warmup=2, ema_decay=0.9)


class Module(nn.Module):
    """A tiny stage; after `stop_at` steps, `stop` is called."""

    def __init__(self, stop_at: int | None = None, stop: Callable[[], None] = lambda: None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.stop_at, self.stop, self.steps_run, self.cooldowns = stop_at, stop, 0, []

    def sample(self, rng: np.random.Generator, as_rendered: bool) -> dict[str, torch.Tensor]:
        self.cooldowns.append(as_rendered)
        return {"x": torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))}

    def losses(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.steps_run == self.stop_at:
            self.stop()
        self.steps_run += 1
        return {"square": (self.layers(batch["x"])[:, 0] - batch["x"].sum(1)).square().mean()}


def raise_stopped() -> None:
    raise Stopped


def stage(folder: Path, steps: int, stop_at: int | None = None, stop=raise_stopped, **options) -> Module:
    """Train a tiny stage in a folder; with `stop_at`, stop it at that step."""
    folder.mkdir(exist_ok=True)
    module, settings = Module(stop_at, stop), options.pop("settings", {"seed": 0})
    schedule = replace(SCHEDULE, steps=steps)
    options = {"evaluate": lambda: {"accuracy": 1.0}, "seed": 0} | options
    train_stage(module, schedule, folder / "stage.pt", settings, **options)
    return module


@pytest.fixture(autouse=True)
def save_often(monkeypatch):
    """Save every three steps."""
    monkeypatch.setattr(trainer, "SAVE_EVERY", 3)


def curve(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "stage.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("stop_at", [3, 5])
def test_resumed_stage_equals_an_uninterrupted_one(tmp_path, stop_at):
    """A stage that was stopped and resumed ends with the same weights."""
    expected = stage(tmp_path / "whole", 6)
    with pytest.raises(Stopped):
        stage(tmp_path / "cut", 6, stop_at)
    resumed = stage(tmp_path / "cut", 6)
    for name, weight in trainer.trained_tensors(expected).items():
        assert torch.equal(weight, trainer.trained_tensors(resumed)[name]), name
    last = [curve(tmp_path / run)[-1] for run in ("whole", "cut")]
    assert last[0].keys() == last[1].keys() and last[0]["step"] == last[1]["step"] == 6


def test_resumed_stage_continues_its_curve(tmp_path):
    """Stopped after a row of the curve was written, a stage ends with the curve of an uninterrupted run."""
    stage(tmp_path / "whole", 100)
    with pytest.raises(Stopped):
        stage(tmp_path / "cut", 100, 52)
    with open(tmp_path / "cut/stage.jsonl", "a") as log:
        log.write('{"step": 5')  # cut short by a kill
    stage(tmp_path / "cut", 100)
    rows, expected = curve(tmp_path / "cut"), curve(tmp_path / "whole")
    assert rows[0] == expected[0] and rows[1].keys() == expected[1].keys()
    assert [row["step"] for row in curve(tmp_path / "whole")] == [50, 100]


def test_finished_stage_returns_at_once(tmp_path):
    """A finished stage is neither trained nor logged again."""
    stage(tmp_path, 3)
    before, rows = (tmp_path / "stage.pt").read_bytes(), curve(tmp_path)
    stage(tmp_path, 3, stop_at=0)
    assert (tmp_path / "stage.pt").read_bytes() == before and curve(tmp_path) == rows


def test_checkpoint_of_another_architecture_is_rejected(tmp_path):
    stage(tmp_path, 3)
    saved = torch.load(tmp_path / "stage.pt", weights_only=True)
    torch.save(saved | {"average": {"other": torch.zeros(1)}}, tmp_path / "stage.pt")
    with pytest.raises(InputError, match=r"stage\.pt: not a checkpoint of this stage \(weights are missing or unknown"):
        stage(tmp_path, 3)


@pytest.mark.parametrize("content", [b"", pickle.dumps(Path("code"), 2)], ids=["empty", "code"])
def test_a_checkpoint_that_is_empty_or_holds_code_is_one_line(tmp_path, content):
    (tmp_path / "stage.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"stage.pt: not a checkpoint of this stage \([^\n]*\)") as error:
        stage(tmp_path, 3)
    assert "weights_only" not in str(error.value)


def test_checkpoint_of_other_settings_is_rejected(tmp_path):
    """The error says which setting differs, what it was and what it is."""
    stage(tmp_path, 3)
    for settings, message in (
        ({"seed": 1}, r"\(seed was 0, is 1\)"),
        ({}, r"\(seed was 0, is None\)"),
        ({"seed": 0, "shape": "cells"}, r"\(shape was None, is cells\)"),
    ):
        with pytest.raises(InputError, match=message):
            stage(tmp_path, 3, settings=settings)


@pytest.mark.parametrize(("kind", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_saves_a_checkpoint(tmp_path, kind, expected):
    """The step is finished and saved; the resumed run equals an uninterrupted one, and handlers are restored."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(expected) as ended:
        stage(tmp_path / "cut", 6, 3, stop=lambda: os.kill(os.getpid(), kind))
    assert kind == signal.SIGINT or ended.value.code == 128 + signal.SIGTERM
    assert torch.load(tmp_path / "cut/stage.pt", weights_only=True)["step"] == 4
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    resumed, whole = stage(tmp_path / "cut", 6), stage(tmp_path / "whole", 6)
    assert resumed.steps_run == 2
    assert torch.equal(resumed.layers[0].weight, whole.layers[0].weight)


def test_a_stage_ends_with_averaged_weights(tmp_path):
    """The average is that of the weights after each step, and it is what a finished checkpoint has."""
    module, steps = Module(), []
    training = trainer.Training(module, replace(SCHEDULE, steps=5), {})
    expected = {name: weight.clone() for name, weight in training.average.items()}
    assert "layers.1.running_var" in expected and not any(name.startswith("frozen") for name in expected)
    for step in range(5):
        training.update(module.losses(module.sample(np.random.default_rng(step), False)))
        decay = min(0.9, (1 + step) / (10 + step))
        for name, weight in training.weights.items():
            expected[name] = decay * expected[name] + (1 - decay) * weight
        steps.append(module.layers[0].weight.detach().clone())
    for name, weight in training.average.items():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
    with training.averaged():
        assert torch.equal(module.layers[0].weight, training.average["layers.0.weight"]) and not module.training
    assert torch.equal(module.layers[0].weight, steps[-1])
    training.save(tmp_path / "stage.pt")
    assert set(torch.load(tmp_path / "stage.pt", weights_only=True)) == {
        *("step", "settings", "average", "seconds", "cpu_seconds")
    }


def test_workers_make_the_same_batches(tmp_path):
    """Batches that other processes prepare do not change the weights."""
    alone, helped = stage(tmp_path / "alone", 4), stage(tmp_path / "helped", 4, workers=2)
    assert torch.equal(alone.layers[0].weight, helped.layers[0].weight) and not helped.cooldowns


def test_a_part_of_a_stage_stops_at_its_end(tmp_path):
    """Trained in two parts, a stage has the weights of one trained at once; only the last share is a cooldown."""
    stage(tmp_path / "parts", 10, until=4)
    second, whole = stage(tmp_path / "parts", 10), stage(tmp_path / "whole", 10)
    assert second.steps_run == 6 and torch.equal(second.layers[0].weight, whole.layers[0].weight)
    assert whole.cooldowns == [False] * 7 + [True] * 3


def test_learning_rate_is_flat_between():
    """A longer run has the rates of a shorter one up to the shorter one's cooldown."""
    schedules = [replace(SCHEDULE, steps=steps, warmup=200) for steps in (1000, 2000)]
    short, long = ([trainer.lr_factor(step, one) for step in range(700)] for one in schedules)
    assert short == long and short[0] == 1 / 200 and short[500] == 1.0
    assert trainer.lr_factor(999, schedules[0]) < 0.01
