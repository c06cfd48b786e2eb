"""Many questions on one image -> one sequence: the image once, then each question as a branch.

A branch sees the image and itself, not its siblings, and its positions go on from the image, so loss and
gradients are those of separate samples. Only answers and their end token carry loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.prompts import PromptTokens
from ..models.shared_vocab import SharedRowHead
from .lora import PeftTrainingModule

IGNORE = -100  # the label that carries no loss, as in torch's cross entropy


@dataclass(frozen=True)
class PackedView:
    """One view with its pairs. All lists have the sequence's length s.

    labels hold the token to predict AT a position (already shifted), `IGNORE` elsewhere; weights are how
    much that token's loss counts; branch is 0 for the prefix, 1, 2, ... for the pairs.
    """

    ids: list[int]
    positions: list[int]
    branch: list[int]
    labels: list[int]
    weights: list[float]


def pack(tokens: PromptTokens, pairs: Sequence[tuple[str, str, float]]) -> PackedView:
    """(question, answer, weight) of one view -> one sequence. A pair's weight is spread over its answer."""
    start = len(tokens.prefix)
    ids, positions = list(tokens.prefix), list(range(start))
    branch, labels, weights = [0] * start, [IGNORE] * start, [0.0] * start
    for number, (question, answer, weight) in enumerate(pairs, 1):
        asked, answered = tokens.question(question), tokens.answer(answer)
        # the end token is only ever predicted, so it needs no place of its own
        length = len(asked) + len(answered) - 1
        ids += asked + answered[:-1]
        positions += range(start, start + length)
        branch += [number] * length
        labels += [IGNORE] * (len(asked) - 1) + answered
        weights += [0.0] * (len(asked) - 1) + [weight / len(answered)] * len(answered)
    return PackedView(ids, positions, branch, labels, weights)


def collate(views: Sequence[PackedView], pixel_values: Tensor, pad_id: int) -> dict[str, Tensor]:
    """Packed views -> a batch, padded on the right.

    Args:
        pixel_values: [b, 1, 3, h, w].

    Returns:
        input_ids, position_ids, labels, weights [b, s]; attention_mask [b, 1, s, s], true where a row's
        token sees a column's; pixel_values.
    """
    length = max(len(view.ids) for view in views)

    def stack(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        rows = [getattr(view, name) for view in views]
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=dtype)

    branch = stack("branch", -1, torch.long)
    same = branch[:, :, None] == branch[:, None, :]
    prefix = branch[:, None, :] == 0
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {
        "input_ids": stack("ids", pad_id, torch.long),
        "position_ids": stack("positions", 0, torch.long),
        "labels": stack("labels", IGNORE, torch.long),
        "weights": stack("weights", 0.0, torch.float32),
        "attention_mask": ((same | prefix) & causal)[:, None],
        "pixel_values": pixel_values,
    }


class PackedTrainingModule(PeftTrainingModule):
    """A generative model with LoRA that maps a packed batch to its loss.

    The vocabulary is large beside a small model, so logits are computed where there is a label only, and those of
    tokens with the same row once.
    """

    @cached_property
    def vocabulary(self) -> SharedRowHead:
        """The output layer, which LoRA leaves as it is."""
        return SharedRowHead(self.base.lm_head.weight)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        """See `collate`. Returns `loss`: the weighted sum of the answer tokens' cross entropies, a view."""
        hidden = self.base.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            use_cache=False,
        ).last_hidden_state  # [b, s, d]
        asked = labels != IGNORE
        if self.base.lm_head.weight.requires_grad:
            logits = self.base.lm_head(hidden[asked]).float()  # [answer tokens, tokens]
            loss = F.cross_entropy(logits, labels[asked], reduction="none")
        else:
            loss = self.vocabulary.cross_entropy(hidden[asked], labels[asked])
        return {"loss": (loss * weights[asked]).sum() / len(labels)}
