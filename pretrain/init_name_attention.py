"""A head of the text model's first layer that looks from a kart's name to the kart's token, set by least squares.

To answer about a kart that a question names, a text model has to find that kart's token, carry what it says to the
name, and from there to the answer. None of these pays without the others: after 500 batches of 8 imagined scenes it
still guessed sides from the numbers of karts (81 % right); with the first step given it knew 99.3 % of them by then.
"""

import torch
from torch import Tensor

from .targets import KARTS
from .text_stage import TextStage

SLOW = 6  # pairs of a head's dimensions from this one on turn little over the length of a prompt
NAMED = 5.0  # weight of names and karts' tokens beside that of other tokens, which shall match nothing
OWN = 12.0  # the logit of a name with its kart's token


@torch.no_grad()
def look_up_names(stage: TextStage, seed: int = 0) -> None:
    """Set up the slots of the connector, and the first head of the first layer, which then no longer learns."""
    text_model, connector = stage.model.model.text_model, stage.connector
    embedding, row = stage.model.get_input_embeddings().weight, stage.vocabulary.row
    names = [row[stage.tokens.tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    for slot, name in zip(connector.slot.weight, names, strict=False):
        word = embedding[name].sum(0)
        slot.copy_(word / word.std())

    attention, norm = text_model.layers[0].self_attn, text_model.layers[0].input_layernorm
    size = attention.head_dim
    slow = torch.cat([torch.arange(SLOW, size // 2), torch.arange(SLOW, size // 2) + size // 2])
    codes = torch.randn(len(KARTS), len(slow), generator=torch.Generator().manual_seed(seed))
    codes /= codes.norm(dim=1, keepdim=True)
    # what a token asks for: the mean code of the karts whose name it is a part of; nothing, of none
    asked, parts = torch.zeros(len(embedding), len(slow)), torch.zeros(len(embedding), 1)
    for name, code in zip(names, codes, strict=True):
        asked[name] += code
        parts[name] += 1
    asked /= parts.clamp(min=1)
    tokens, slots = norm(embedding), norm(connector.norm(connector.slot.weight))
    given = torch.zeros(len(slots), len(slow))
    given[: len(KARTS)] = codes
    query = _solve(tokens, asked, torch.where(parts > 0, NAMED, 1.0))
    weights = torch.cat([torch.full((len(slots), 1), NAMED), torch.ones(len(tokens), 1)])
    key = _solve(torch.cat([slots, tokens]), torch.cat([given, torch.zeros_like(asked)]), weights)
    for projection, solved in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight[:size] = 0
        projection.weight[slow] = (OWN * size**0.5) ** 0.5 * solved
        projection.weight.register_hook(lambda gradient: torch.cat([0 * gradient[:size], gradient[size:]]))


def _solve(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Ridge regression: w [out, in] with x @ w.T near y; x [n, in], y [n, out], weights [n, 1]."""
    x, y = weights * x, weights * y
    return torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]), x.T @ y).T
