"""The mean of towers that were trained on from one tower: what one of them gets wrong another often doesn't."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .checkpoints import VisionStage
from .dataset import CROWDED, Frames
from .dense_heads import forward

BATCHES, VIEWS = 30, 64  # by which a mean tower's norms are measured


@torch.no_grad()
def mean_of(stages: Sequence[VisionStage]) -> VisionStage:
    """The first of some stages, with the mean of all their weights (Wortsman et al. 2022, arXiv:2203.05482).

    Args:
        stages: of one geometry, gone on from the same tower, or their mean is of no use.
    """
    states = [stage.state_dict() for stage in stages]
    mean = {
        name: sum(state[name] for state in states) / len(states) if weight.is_floating_point() else weight
        for name, weight in states[0].items()
    }
    stages[0].load_state_dict(mean)
    return stages[0]


@torch.no_grad()
def measure_norms(stage: VisionStage, frames: Frames) -> None:
    """Set batch norms by what they see of views as they were drawn: the mean of towers has other statistics."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # each batch counts as much
    stage.train()
    for number in range(BATCHES):
        rng = np.random.default_rng((5, number))
        pixels, *_ = frames.augmented(rng, VIEWS, paste=0, zoom=0, crowded=CROWDED, added=0)
        forward(stage.tower, stage.heads, pixels)
    for norm in norms:
        norm.momentum = momentum
