"""nano/: the mean of towers that were trained on from one."""

import copy

import pytest
import torch
from torch import nn

from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig
from homework.utils.errors import InputError
from pretrain import cli as train
from pretrain.checkpoints import VisionStage, saved_vision
from pretrain.dataset import Frames, training_frames
from pretrain.trainer import save_checkpoint
from tests.tiny_models import VISION


@pytest.fixture
def parts(tmp_path, monkeypatch) -> list[VisionStage]:
    """Two small stages that went on from one, saved as a.pt and b.pt."""
    monkeypatch.setattr(
        "pretrain.checkpoints.VisionStage", lambda: VisionStage(TuxNanoVisionConfig(**VISION, batch_norm=True))
    )
    torch.manual_seed(0)
    first = VisionStage(TuxNanoVisionConfig(**VISION, batch_norm=True))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    for name, stage in (("a.pt", first), ("b.pt", second)):
        save_checkpoint(tmp_path / name, 1, stage, {})
    return [first, second]


def test_average_is_a_stage_to_go_on_with(parts, tiny_data, tmp_path, monkeypatch):
    """Its weights are the mean, its norms what it sees of frames itself, and the next stages read it."""
    frames = training_frames(str(tiny_data), "train")
    batch, targets = frames.batch(list(range(len(frames))))
    monkeypatch.setattr(Frames, "augmented", lambda self, *_, **__: (batch, targets, self.scenes))
    files = ",".join(str(tmp_path / name) for name in ("a.pt", "b.pt"))
    train.average(parts=files, splits="train", data=str(tiny_data), out=str(tmp_path / "mean"))
    mean = saved_vision(tmp_path / "mean/dense.pt").eval()
    for (name, found), *weights in zip(mean.named_parameters(), *(part.parameters() for part in parts), strict=True):
        assert torch.allclose(found, sum(weights) / 2, atol=1e-6), name
    first_norm = next(module for module in mean.modules() if isinstance(module, nn.BatchNorm2d))
    seen = []
    convolution = mean.tower.stages[0][0][0]
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        mean.tower.feature_maps(batch)
    assert torch.allclose(first_norm.running_mean, seen[0].mean((0, 2, 3)), atol=1e-3)
    assert first_norm.running_mean.abs().max() > 0.2  # it was 0


def test_what_average_can_not_do_is_told_in_a_line(parts, tiny_data, tmp_path):
    """A part that is not there, a split that is for measuring alone, a run's folder, whose checkpoint stays."""
    asked = {"data": str(tiny_data), "out": str(tmp_path / "mean")}
    with pytest.raises(InputError, match="no such checkpoint"):
        train.average(parts=f"{tmp_path}/a.pt,{tmp_path}/c.pt", splits="train", **asked)
    with pytest.raises(InputError, match="valid"):
        train.average(parts=f"{tmp_path}/a.pt,{tmp_path}/b.pt", splits="valid", **asked)
    assert not (tmp_path / "mean").exists()
    (tmp_path / "dense.pt").write_bytes(b"of a run")
    with pytest.raises(InputError, match="dense.pt: is the checkpoint of a run"):
        train.average(parts=f"{tmp_path}/a.pt,{tmp_path}/b.pt", splits="train", **asked | {"out": str(tmp_path)})
    assert (tmp_path / "dense.pt").read_bytes() == b"of a run"
