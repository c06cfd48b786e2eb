"""nano/: the training loop that resumes, and what it can begin with."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig, TuxNanoVisionModel
from homework.utils.errors import InputError
from pretrain import cli as train
from pretrain import dataset as frames
from pretrain.checkpoints import VisionStage, begin_with
from pretrain.dataset import Frames
from pretrain.foveal_pretraining import FoveaStage
from pretrain.trainer import lr_factor, train_stage
from tests.tiny_models import VISION


class Stopped(Exception):
    """A run that is cut short."""


def stage(folder, steps: int, stop_at: int | None = None, save_every: int = 3) -> nn.Module:
    """A tiny stage; with `stop_at`, it dies after so many steps."""
    torch.manual_seed(0)
    module, taken = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), []

    def loss_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        if stop_at is not None and len(taken) == stop_at:
            raise Stopped
        taken.append(1)
        x = torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))
        return {"square": (module(x)[:, 0] - x.sum(1)).square().mean()}

    train_stage(
        module, loss_of, folder, "stage", steps, 1e-2, save_every=save_every, evaluate=lambda: {"accuracy": 1.0}
    )
    return module


def curve(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "stage.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("stop_at", [3, 5])
def test_resumed_stage_is_the_undisturbed_one(tmp_path, stop_at):
    """A stage that was stopped and run again ends with the same weights."""
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


def test_resumed_stage_goes_on_with_its_curve(tmp_path):
    """Stopped where the last row of the curve was written, a stage has the curve of an undisturbed run."""
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


def test_checkpoint_of_another_geometry(tmp_path):
    """A checkpoint that does not fit: one line that names it."""
    torch.save({"step": 1, "model": {"other": torch.zeros(1)}, "optimizer": {}}, tmp_path / "stage.pt")
    with pytest.raises(InputError, match="stage.pt: not a checkpoint of this stage"):
        stage(tmp_path, 3)


def test_learning_rate_is_flat_between(tmp_path):
    """Up, flat, down: a longer run repeats a shorter one's rates up to where the shorter cools down."""
    short, long = ([lr_factor(step, steps) for step in range(700)] for steps in (1000, 2000))
    assert short == long and short[0] == 1 / 200 and short[500] == 1.0
    assert lr_factor(999, 1000) < 0.01


def test_dense_stage_ends_with_as_many_karts_as_were_drawn(tiny_data, tmp_path, monkeypatch):
    """Karts are added, and parts of views taken, while the learning rate is high; then only another ego kart comes."""
    asked, augmented = [], Frames.augmented
    shares = {"paste": frames.PASTE, "zoom": frames.ZOOMED, "added": frames.ADDED}

    def recorded(self, rng, size, **options):
        asked.append({name: options.get(name, share) for name, share in shares.items()})
        return augmented(self, rng, size, **options)

    monkeypatch.setattr(Frames, "augmented", recorded)
    monkeypatch.setattr(train, "VisionStage", lambda: VisionStage(TuxNanoVisionConfig(**VISION, batch_norm=True)))
    train.dense(data=str(tiny_data), out=str(tmp_path), steps=10, batch=2)
    assert asked == [shares] * 7 + [shares | {"zoom": 0, "added": 0}] * 3


def test_more_attention_layers_begin_as_the_identity(tmp_path):
    """A tower of two attention layers goes on as one of more, seeing what it saw before."""
    torch.manual_seed(0)
    small = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION, batch_norm=True)).eval()
    large = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION | {"num_hidden_layers": 3}, batch_norm=True)).eval()
    file = tmp_path / "stage.safetensors"
    save_file({f"tower.{name}": weight for name, weight in small.state_dict().items()}, file)
    stage = VisionStage(large.config).eval()
    begin_with(stage, file)
    pixels = torch.randn(2, 3, 100, 150)
    with torch.no_grad():
        assert torch.equal(small(pixels).last_hidden_state, stage.tower(pixels).last_hidden_state)


def test_a_run_can_begin_with_the_checkpoint_of_another(tmp_path):
    """As with the saved stage, tower and heads are taken over from a `.pt` file; of what else is in it nothing is."""
    config = TuxNanoVisionConfig(**VISION, batch_norm=True)
    first, second = FoveaStage(config), VisionStage(config)
    file = tmp_path / "fovea.pt"
    torch.save({"step": 1, "model": first.state_dict(), "optimizer": {}}, file)
    begin_with(second, file)
    first = {name: weight for name, weight in first.state_dict().items() if not name.startswith("last.")}
    assert len(first) == len(second.state_dict())
    assert all(torch.equal(weight, second.state_dict()[name]) for name, weight in first.items())


def test_the_foveas_stage_trains_the_fovea_alone(tiny_data, tmp_path, monkeypatch):
    """One step: the checkpoint holds a tower that differs from the one begun with in the fovea only."""
    config = TuxNanoVisionConfig(**VISION, batch_norm=True)
    monkeypatch.setattr(train, "VISION", config)
    begun = FoveaStage(config)
    torch.save({"step": 1, "model": begun.state_dict(), "optimizer": {}}, tmp_path / "begun.pt")
    train.fovea(data=str(tiny_data), out=str(tmp_path), steps=1, batch=2, start=str(tmp_path / "begun.pt"))
    trained = torch.load(tmp_path / "fovea.pt", weights_only=True)
    changed = {name for name, weight in begun.state_dict().items() if not torch.equal(weight, trained["model"][name])}
    changed = {name for name in changed if not name.startswith("last.")}
    assert changed and all(name.startswith(("tower.fovea.", "heads.fovea_fine.")) for name in changed)
    assert "cells 5+ px" in json.loads((tmp_path / "fovea.jsonl").read_text())


@pytest.mark.parametrize("saved", ["other channels", "no tower", "no stage"])
def test_what_no_tower_can_begin_with(tmp_path, saved):
    """One line that names the file."""
    file = tmp_path / "stage.safetensors"
    if saved == "no stage":
        file.write_bytes(b"broken")
    else:
        other = TuxNanoVisionModel(TuxNanoVisionConfig(**VISION | {"channels": (8, 8, 16, 24)}, batch_norm=True))
        prefix = "tower" if saved == "other channels" else "heads"
        save_file({f"{prefix}.{name}": weight for name, weight in other.state_dict().items()}, file)
    with pytest.raises(InputError, match="stage.safetensors"):
        begin_with(VisionStage(TuxNanoVisionConfig(**VISION, batch_norm=True)), file)


def test_valid_is_not_trained_on(tiny_data, tmp_path):
    with pytest.raises(InputError, match="valid: a split to measure on"):
        train.dense(data=str(tiny_data), splits="train,valid", out=str(tmp_path), steps=1)
