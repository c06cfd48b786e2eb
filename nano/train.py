"""Build the embedded base from nothing: `python -m nano.train dense`, then `text`, then `export`."""

from pathlib import Path

import fire
import numpy as np
import torch
from torch import nn

from homework.errors import one_line_errors
from homework.nano_model import TuxNanoVisionConfig, TuxNanoVisionModel

from .dense import DenseHeads, accuracy, dense_loss, forward
from .frames import Frames
from .trainer import train_stage, use_all_cores

HELD_OUT = 20  # every 20th frame of train is kept for choosing; valid is only for measuring


class VisionStage(nn.Module):
    """The tower with its teaching heads."""

    def __init__(self):
        super().__init__()
        config = TuxNanoVisionConfig(channels=(24, 48, 96, 192), batch_norm=True)
        self.tower = TuxNanoVisionModel(config).to(memory_format=torch.channels_last)
        self.heads = DenseHeads(config.channels[-2], config.hidden_size, config.num_summary_tokens)


@torch.no_grad()
def evaluate_dense(stage: VisionStage, frames: Frames, batch: int = 100) -> dict[str, float]:
    """Accuracy in percent of the image heads on whole views, as the questions would be answered."""
    totals = {}
    for start in range(0, len(frames), batch):
        pixels, targets = frames.batch(np.arange(start, min(start + batch, len(frames))))
        for name, pair in accuracy(forward(stage.tower, stage.heads, pixels)[0], targets).items():
            totals[name] = np.add(totals.get(name, (0, 0)), pair)
    return {f"accuracy_{name}": round(100 * float(right) / float(asked), 2) for name, (right, asked) in totals.items()}


def dense(data: str = "data", out: str = "runs/nano", steps: int = 6000, batch: int = 64, seed: int = 0) -> None:
    """Train the tower on what the boxes say of each cell and each image."""
    with one_line_errors():
        use_all_cores()
        torch.manual_seed(seed)
        frames = Frames(Path(data), "train", lambda index: index % HELD_OUT)
        held_out = Frames(Path(data), "train", lambda index: index % HELD_OUT == 0)
        stage = VisionStage()

        def loss_of(rng: np.random.Generator):
            pixels, targets, *_ = frames.augmented(rng, batch)
            return dense_loss(forward(stage.tower, stage.heads, pixels)[0], targets)

        train_stage(
            stage, loss_of, Path(out), "dense", steps, 2e-3, seed=seed, evaluate=lambda: evaluate_dense(stage, held_out)
        )


if __name__ == "__main__":
    fire.Fire({"dense": dense})
