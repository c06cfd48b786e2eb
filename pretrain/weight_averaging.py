"""Average the weights of vision encoders that were trained from a common checkpoint (model soup, arXiv:2203.05482)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .augment import AugmentConfig
from .checkpoints import VisionStage
from .dataset import PretrainDataset
from .dense_heads import run_heads

NUM_BATCHES, BATCH_SIZE = 30, 64  # that batch norms are recalibrated with


@torch.no_grad()
def average_weights(stages: Sequence[VisionStage]) -> VisionStage:
    """Load the mean of the weights into the first stage, and return it.

    Args:
        stages: of one architecture, trained from a common checkpoint; otherwise the mean is useless.
    """
    states = [stage.state_dict() for stage in stages]
    mean = {
        name: sum(state[name] for state in states) / len(states) if weight.is_floating_point() else weight
        for name, weight in states[0].items()
    }
    stages[0].load_state_dict(mean)
    return stages[0]


@torch.no_grad()
def recalibrate_batch_norm(stage: VisionStage, dataset: PretrainDataset) -> None:
    """Recompute batch norm statistics on views as rendered: averaged weights have other statistics."""
    norms = [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: each batch has the same weight
    stage.train()
    config = AugmentConfig(swap_ego_prob=0, zoom_prob=0, add_far_karts_prob=0)
    for number in range(NUM_BATCHES):
        pixels, *_ = dataset.sample_batch(np.random.default_rng((5, number)), BATCH_SIZE, config)
        run_heads(stage.tower, stage.heads, pixels)
    for norm in norms:
        norm.momentum = momentum
