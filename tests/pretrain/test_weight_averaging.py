"""Averaging of the weights of vision encoders."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from homework.utils.errors import InputError
from pretrain import cli
from pretrain.checkpoints import VisionStage, load_vision_stage
from pretrain.dataset import PretrainDataset, load_training_data
from pretrain.trainer import save_checkpoint
from tests.tiny_models import VISION


@pytest.fixture
def stages(tmp_path, monkeypatch) -> list[VisionStage]:
    """Two small stages with nearby weights, saved as a.pt and b.pt."""
    monkeypatch.setattr("pretrain.checkpoints.VisionStage", lambda: VisionStage(replace(VISION, batch_norm=True)))
    torch.manual_seed(0)
    first = VisionStage(replace(VISION, batch_norm=True))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    for name, stage in (("a.pt", first), ("b.pt", second)):
        save_checkpoint(tmp_path / name, 1, stage, {})
    return [first, second]


def test_average_writes_a_stage(stages, tiny_data, tmp_path, monkeypatch):
    """The stage has the mean weights and recalibrated batch norms, and the next stages can load it."""
    frames = load_training_data(str(tiny_data), "train")
    batch, targets = frames.get_batch(list(range(len(frames))))
    monkeypatch.setattr(PretrainDataset, "sample_batch", lambda self, *_: (batch, targets, self.scenes))
    files = tuple(str(tmp_path / name) for name in ("a.pt", "b.pt"))
    cli.average(checkpoints=files, splits="train", data=str(tiny_data), run_dir=str(tmp_path / "mean"))
    mean = load_vision_stage(tmp_path / "mean/dense.pt").eval()
    for (name, found), *weights in zip(mean.named_parameters(), *(stage.parameters() for stage in stages), strict=True):
        assert torch.allclose(found, sum(weights) / 2, atol=1e-6), name
    first_norm = next(module for module in mean.modules() if isinstance(module, nn.BatchNorm2d))
    outputs = []
    convolution = mean.vision_encoder.stages[0][0][0]
    convolution.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        mean.vision_encoder.feature_maps(batch)
    assert torch.allclose(first_norm.running_mean, outputs[0].mean((0, 2, 3)), atol=1e-3)
    assert first_norm.running_mean.abs().max() > 0.2  # it was 0 before


def test_average_rejects_bad_input(stages, tiny_data, tmp_path):
    """A missing checkpoint, an evaluation split, and a run's folder, whose checkpoint stays."""
    options = {"splits": "train", "data": str(tiny_data), "run_dir": str(tmp_path / "mean")}
    a, b, missing = (str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt"))
    with pytest.raises(InputError, match="no such checkpoint"):
        cli.average(checkpoints=(a, missing), **options)
    with pytest.raises(InputError, match="valid"):
        cli.average(checkpoints=(a, b), **options | {"splits": "valid"})
    assert not (tmp_path / "mean").exists()
    (tmp_path / "dense.pt").write_bytes(b"of a run")
    with pytest.raises(InputError, match="dense.pt: already the checkpoint of a run"):
        cli.average(checkpoints=(a, b), **options | {"run_dir": str(tmp_path)})
    assert (tmp_path / "dense.pt").read_bytes() == b"of a run"
