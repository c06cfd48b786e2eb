"""An output layer over a vocabulary in which most tokens share one row."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(hidden_states: Tensor, table: Tensor, num_tokens: Tensor, rows: Tensor) -> Tensor:
    """Compute cross-entropy over the full vocabulary when several tokens share one output row. [n].

    Args:
        hidden_states: [n, d].
        table: distinct output rows, [rows, d].
        num_tokens: how many tokens share each row, [rows].
        rows: the row of each label, [n].
    """
    logits = hidden_states @ table.T  # [n, rows]
    log_num_tokens = num_tokens.to(torch.promote_types(logits.dtype, torch.float32)).log()
    return F.cross_entropy(logits + log_num_tokens, rows, reduction="none") + log_num_tokens[rows]


class SharedRowHead:
    """An output layer without bias that computes each distinct row once.

    All but 198 of TuxNano's 49,280 tokens never occur and share one row. Counting that row once per token in the
    softmax gives exactly the loss over the full vocabulary. Where all rows differ, this is an ordinary output layer.

    Args:
        weight: of the output layer, [tokens, d]; its values at this moment are used, without gradients.
    """

    def __init__(self, weight: Tensor):
        weight, rows = weight.detach(), {}
        # by their bytes, whatever the dtype; a dictionary finds equal rows ten times as fast as torch.unique
        stored = weight.cpu().contiguous().view(torch.uint8).numpy()
        first = torch.tensor([rows.setdefault(row.tobytes(), token) for token, row in enumerate(stored)])
        # the first token of each row, [rows]; the row of each token, [tokens]; how many tokens share it, [rows]
        found = first.to(weight.device).unique(return_inverse=True, return_counts=True)
        self.token_of_row, self.row_of_token, self.num_tokens = found
        self.table = weight if len(rows) == len(weight) else weight[self.token_of_row]

    def cross_entropy(self, hidden_states: Tensor, labels: Tensor) -> Tensor:
        """Compute each label's cross-entropy over all tokens. hidden_states [n, d], labels [n] -> [n]."""
        return cross_entropy(hidden_states, self.table, self.num_tokens, self.row_of_token[labels])

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Compute the logits of the distinct rows. [n, d] -> [n, rows]."""
        return hidden_states @ self.table.T

    def argmax_token(self, hidden_states: Tensor) -> Tensor:
        """Return the token with the highest logit, the first of equal ones. [n, d] -> [n]."""
        return self.token_of_row[self.logits(hidden_states).argmax(-1)]

    def sample_token(self, hidden_states: Tensor, temperature: float) -> Tensor:
        """Draw a token from the softmax over all tokens at a temperature above 0. [n, d] -> [n]."""
        logits = self.logits(hidden_states).float()[:, self.row_of_token] / temperature
        return torch.multinomial(logits.softmax(-1), 1)[:, 0]
