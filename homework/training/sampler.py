"""The order of views in training."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class LengthGroupedBatches(LengthGroupedSampler):
    """Group views with about as many questions in a batch, so that little is padded.

    The order depends on seed and epoch alone, so a resumed run continues in it.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this before each one."""
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + 7919 * self.epoch)
        return super().__iter__()
