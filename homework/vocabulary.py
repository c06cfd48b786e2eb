"""The output layer over a vocabulary of which most tokens share one row."""

import torch
from torch import Tensor
from torch.nn import functional as F


class Vocabulary:
    """An output layer without bias, each distinct row of which is computed once.

    Of the embedded base's 49,280 tokens all but 198 never occur and have the same row: a softmax counts it as often as
    there are such tokens, which is exactly the loss of the whole vocabulary. Where all rows differ nothing changes.

    Args:
        weight: [tokens, d]; what is computed from it later is of its present values, and has no gradient for them.
    """

    def __init__(self, weight: Tensor):
        weight, rows = weight.detach(), {}
        # by their bytes, whatever their type; a dictionary finds equal ones ten times as fast as torch.unique
        stored = weight.cpu().contiguous().view(torch.uint8).numpy()
        row_of = [rows.setdefault(row.tobytes(), len(rows)) for row in stored]
        self.row_of = torch.tensor(row_of, device=weight.device)  # [tokens]
        count = torch.bincount(self.row_of)
        self.log_count = count.log()  # [rows]
        self.token_of = self.row_of.argsort(stable=True)[count.cumsum(0) - count]  # the first of each row, [rows]
        self.table = weight if len(rows) == len(weight) else weight[self.token_of]

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Of each label among all tokens. hidden [n, d], labels [n] -> [n]."""
        rows = self.row_of[labels]
        logits = (hidden @ self.table.T).float() + self.log_count  # [n, rows]
        return F.cross_entropy(logits, rows, reduction="none") + self.log_count[rows]

    def likeliest(self, hidden: Tensor) -> Tensor:
        """The token of the highest logit, the first of several. [n, d] -> [n]."""
        return self.token_of[(hidden @ self.table.T).argmax(-1)]
