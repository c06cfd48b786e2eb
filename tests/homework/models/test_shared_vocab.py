"""The output layer whose equal rows are computed once."""

import pytest
import torch
from torch.nn import functional as F

from homework.models.shared_vocab import SharedRowHead

TOKENS, D = 60, 8


def table(kind: str) -> torch.Tensor:
    """An output layer's weight: all rows the same but for some, or all different."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(TOKENS, D, generator=generator)
    if kind == "repeated":
        weight[torch.randperm(TOKENS, generator=generator)[:50]] = torch.randn(D, generator=generator)
    return weight


@pytest.mark.parametrize("kind", ["repeated", "distinct"])
def test_loss_gradient_and_answer_are_those_of_all_tokens(kind):
    """Of labels with a row of their own and of such that share one."""
    weight, hidden = table(kind), torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(1))
    vocabulary, labels = SharedRowHead(weight), torch.arange(TOKENS)
    assert len(vocabulary.table) == {"repeated": 11, "distinct": TOKENS}[kind]
    found = []
    for loss_of in (vocabulary.cross_entropy, lambda h, n: F.cross_entropy(h @ weight.T, n, reduction="none")):
        leaf = hidden.clone().requires_grad_()
        loss = loss_of(leaf, labels)
        loss.sum().backward()
        found.append((loss.detach(), leaf.grad))
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.equal(vocabulary.argmax_token(hidden), (hidden @ weight.T).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_half_precision(dtype):
    """Rows are told apart by their bytes, whatever their type."""
    assert len(SharedRowHead(table("repeated").to(dtype)).table) == 11
