"""Test models.shared_vocab: an output layer that computes equal rows once."""

import pytest
import torch
from torch.nn import functional as F

from homework.models.shared_vocab import SharedRowHead

TOKENS, D = 60, 8


def make_weight(rows: str) -> torch.Tensor:
    """Make the weight of an output layer: 50 of its 60 rows are equal, or none."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(TOKENS, D, generator=generator)
    if rows == "repeated":
        weight[torch.randperm(TOKENS, generator=generator)[:50]] = torch.randn(D, generator=generator)
    return weight


@pytest.mark.parametrize("rows", ["repeated", "distinct"])
def test_loss_gradient_and_argmax_are_those_of_all_tokens(rows):
    """Labels are tokens with a row of their own, and tokens that share one."""
    weight, hidden = make_weight(rows), torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(1))
    head, labels = SharedRowHead(weight), torch.arange(TOKENS)
    assert len(head.table) == {"repeated": 11, "distinct": TOKENS}[rows]
    found = []
    for compute_loss in (head.cross_entropy, lambda h, n: F.cross_entropy(h @ weight.T, n, reduction="none")):
        leaf = hidden.clone().requires_grad_()
        loss = compute_loss(leaf, labels)
        loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(head.argmax_token(hidden), (hidden @ weight.T).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision(dtype):
    """Rows are compared by their bytes, whatever their dtype."""
    assert len(SharedRowHead(make_weight("repeated").to(dtype)).table) == 11
