"""The training loop, and the weights that stages begin with."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from homework.utils.errors import InputError
from pretrain import checkpoints, cli
from pretrain.augment import AUGMENT
from pretrain.checkpoints import FoveaStage, VisionStage, load_vision_weights
from pretrain.cli import StageOptions
from pretrain.dataset import PretrainDataset
from pretrain.trainer import lr_factor, train_stage
from tests.tiny_models import VISION


class Stopped(Exception):
    """Raised to end a run early."""


def stage(folder, steps: int, stop_at: int | None = None, save_every: int = 3) -> nn.Module:
    """Train a tiny stage; with `stop_at`, raise `Stopped` after so many steps."""
    torch.manual_seed(0)
    module, steps_run = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), []

    def compute_losses(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if stop_at is not None and len(steps_run) == stop_at:
            raise Stopped
        steps_run.append(1)
        x = torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))
        return {"square": (module(x)[:, 0] - x.sum(1)).square().mean()}

    train_stage(
        module, compute_losses, folder, "stage", steps, 1e-2, save_every=save_every, evaluate=lambda: {"accuracy": 1.0}
    )
    return module


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
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    saved = [torch.load(tmp_path / run / "stage.pt", weights_only=True) for run in ("whole", "cut")]
    assert saved[0]["step"] == saved[1]["step"] == 6
    last = [curve(tmp_path / run)[-1] for run in ("whole", "cut")]
    assert last[0].keys() == last[1].keys() and last[0]["step"] == last[1]["step"] == 6


def test_resumed_stage_continues_its_curve(tmp_path):
    """Stopped after a row of the curve was written, a stage ends with the curve of an uninterrupted run."""
    stage(tmp_path / "whole", 100, save_every=50)
    with pytest.raises(Stopped):
        stage(tmp_path / "cut", 100, 60, save_every=50)
    stage(tmp_path / "cut", 100, save_every=50)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert [row["step"] for row in curve(tmp_path / "whole")] == [50, 100]


def test_finished_stage_returns_at_once(tmp_path):
    """A finished stage is neither trained nor logged again."""
    stage(tmp_path, 3)
    before, rows = (tmp_path / "stage.pt").read_bytes(), curve(tmp_path)
    stage(tmp_path, 3, stop_at=0)
    assert (tmp_path / "stage.pt").read_bytes() == before and curve(tmp_path) == rows


def test_checkpoint_of_another_architecture_is_rejected(tmp_path):
    torch.save({"step": 1, "model": {"other": torch.zeros(1)}, "optimizer": {}}, tmp_path / "stage.pt")
    with pytest.raises(InputError, match="stage.pt: not a checkpoint of this stage"):
        stage(tmp_path, 3)


@pytest.mark.parametrize("content", [b"", pickle.dumps(Path("code"), 2)], ids=["empty", "code"])
def test_a_checkpoint_that_is_empty_or_holds_code_is_one_line(tmp_path, content):
    (tmp_path / "stage.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"stage.pt: not a checkpoint of this stage \([^\n]*\)") as error:
        stage(tmp_path, 3)
    assert "weights_only" not in str(error.value)


def test_learning_rate_is_flat_between(tmp_path):
    """A longer run has the rates of a shorter one up to the shorter one's cooldown."""
    short, long = ([lr_factor(step, steps) for step in range(700)] for steps in (1000, 2000))
    assert short == long and short[0] == 1 / 200 and short[500] == 1.0
    assert lr_factor(999, 1000) < 0.01


def test_dense_cooldown_uses_views_as_rendered(tiny_data, tmp_path, monkeypatch):
    """During cooldown no karts are added and no view is zoomed; ego karts are still swapped."""
    configs, sample_batch = [], PretrainDataset.sample_batch

    def record(self, rng, batch_size, config):
        configs.append(config)
        return sample_batch(self, rng, batch_size, config)

    monkeypatch.setattr(PretrainDataset, "sample_batch", record)
    monkeypatch.setattr(checkpoints, "VisionStage", lambda: VisionStage(replace(VISION, batch_norm=True)))
    cli.dense(StageOptions(data=str(tiny_data), run_dir=str(tmp_path), batch_size=2), steps=10)
    assert configs == [AUGMENT] * 7 + [replace(AUGMENT, zoom_prob=0, add_far_karts_prob=0)] * 3


def test_dense_stage_loads_a_fovea_checkpoint(tmp_path):
    """Encoder and heads are loaded, nothing else of the checkpoint."""
    config = replace(VISION, batch_norm=True)
    first, second = FoveaStage(config), VisionStage(config)
    file = tmp_path / "fovea.pt"
    torch.save({"step": 1, "model": first.state_dict(), "optimizer": {}}, file)
    load_vision_weights(second, file)
    first = {name: weight for name, weight in first.state_dict().items() if not name.startswith("last.")}
    assert len(first) == len(second.state_dict())
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.items())


def test_fovea_stage_trains_only_the_foveal_branch(tiny_data, tmp_path, monkeypatch):
    """After one step only weights of the foveal branch differ from the initial ones."""
    config = replace(VISION, batch_norm=True)
    monkeypatch.setattr(checkpoints, "VISION_CONFIG", config)
    initial = FoveaStage(config)
    torch.save({"step": 1, "model": initial.state_dict(), "optimizer": {}}, tmp_path / "initial.pt")
    options = StageOptions(str(tiny_data), run_dir=str(tmp_path), batch_size=2, init_from=str(tmp_path / "initial.pt"))
    cli.fovea(options, steps=1)
    trained = torch.load(tmp_path / "fovea.pt", weights_only=True)
    changed = {name for name, weight in initial.state_dict().items() if not torch.equal(weight, trained["model"][name])}
    changed = {name for name in changed if not name.startswith("last.")}
    assert changed and all(name.startswith(("vision_encoder.foveal_stages.", "heads.foveal_map.")) for name in changed)
    assert "cells 5+ px" in json.loads((tmp_path / "fovea.jsonl").read_text())


@pytest.mark.parametrize("saved", ["other channels", "no encoder", "a layer less", "no heads", "no stage"])
def test_files_without_a_whole_saved_stage_are_rejected(tmp_path, saved):
    """The error names the file and what a stage begins with."""
    file, config = tmp_path / "stage.safetensors", replace(VISION, batch_norm=True)
    if saved == "no stage":
        file.write_bytes(b"broken")
    else:
        changes = {
            "other channels": {"channels": (8, 8, 16, 24)},
            "a layer less": {"num_layers": VISION.num_layers - 1},
        }
        weights = VisionStage(replace(config, **changes.get(saved, {}))).state_dict()
        missing = {"no encoder": "vision_encoder.", "no heads": "heads."}.get(saved, "nothing")
        save_file({k: v.contiguous() for k, v in weights.items() if not k.startswith(missing)}, file)
    with pytest.raises(InputError, match=r"stage\.safetensors: not a saved vision stage .*give a run's dense\.pt"):
        load_vision_weights(VisionStage(config), file)
    with pytest.raises(InputError, match="no such checkpoint"):
        load_vision_weights(VisionStage(config), tmp_path / "missing.pt")


def test_dense_rejects_evaluation_splits(tiny_data, tmp_path):
    with pytest.raises(InputError, match="valid: refusing to train on an evaluation split"):
        cli.dense(StageOptions(str(tiny_data), "train,valid", str(tmp_path)), steps=1)
