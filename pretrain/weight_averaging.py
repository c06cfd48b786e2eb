"""Average the weights of vision encoders that were trained from a common checkpoint (model soup, arXiv:2203.05482)."""

from collections.abc import Sequence

import numpy as np
from torch.optim.swa_utils import update_bn

from .augment import AugmentConfig
from .checkpoints import VisionStage
from .dataset import PretrainDataset

NUM_BATCHES, BATCH_SIZE = 30, 64  # to recalibrate batch norms with


def average_weights(stages: Sequence[VisionStage]) -> VisionStage:
    """Load the mean of the stages' weights into the first of them, and return it."""
    states = [stage.state_dict() for stage in stages]
    mean = {
        name: sum(state[name] for state in states) / len(states) if weight.is_floating_point() else weight
        for name, weight in states[0].items()
    }
    stages[0].load_state_dict(mean)
    return stages[0]


def recalibrate_batch_norm(stage: VisionStage, dataset: PretrainDataset) -> None:
    """Recompute batch norm statistics on views as rendered: averaged weights have other statistics."""
    config = AugmentConfig(swap_ego_prob=0, zoom_prob=0, add_far_karts_prob=0)
    rngs = (np.random.default_rng((5, number)) for number in range(NUM_BATCHES))
    update_bn((dataset.sample_batch(rng, BATCH_SIZE, config) for rng in rngs), stage)
