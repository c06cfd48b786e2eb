"""The output layer over a vocabulary of which most tokens share one row."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(hidden: Tensor, table: Tensor, count: Tensor, rows: Tensor) -> Tensor:
    """Of a token of each row in `rows` among all tokens, of which several may share a row. [n].

    Args:
        hidden: [n, d].
        table: [rows, d].
        count: how many tokens share each row, [rows].
        rows: of the labels, [n].
    """
    logits = hidden @ table.T  # [n, rows]
    log_count = count.to(torch.promote_types(logits.dtype, torch.float32)).log()
    return F.cross_entropy(logits + log_count, rows, reduction="none") + log_count[rows]


class SharedRowHead:
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
        first = torch.tensor([rows.setdefault(row.tobytes(), token) for token, row in enumerate(stored)])
        # the first token of each row, [rows]; the row of each token, [tokens]; how many tokens share it, [rows]
        found = first.to(weight.device).unique(return_inverse=True, return_counts=True)
        self.token_of, self.row_of, self.count = found
        self.table = weight if len(rows) == len(weight) else weight[self.token_of]

    def cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Of each label among all tokens. hidden [n, d], labels [n] -> [n]."""
        return cross_entropy(hidden, self.table, self.count, self.row_of[labels])

    def argmax_token(self, hidden: Tensor) -> Tensor:
        """The token of the highest logit, the first of several. [n, d] -> [n]."""
        return self.token_of[(hidden @ self.table.T).argmax(-1)]
