"""The tokens that the homework's texts are made of, as a small vocabulary to train with.

Of 49,280 tokens some 200 ever occur. All others share one embedding, so training needs just one more row:
the softmax counts that row as often as there are such tokens, which is the loss of the whole vocabulary,
and the exported table repeats it, which a zip then stores in a tenth of the space.
"""

import itertools

import torch
from torch import Tensor, nn

from homework.labels.questions import CAPTIONS, QUESTIONS
from homework.models.prompts import PromptTokens
from homework.models.shared_vocab import cross_entropy

from .assemble import VOCABULARY
from .paraphrases import REWORDED
from .targets import KARTS, MAX_COUNT, TRACKS


def caption_texts() -> list[str]:
    """Every caption that can be true of some frame of the game, in a fixed order."""
    values = {"ego": KARTS, "total": [str(n) for n in range(1, MAX_COUNT + 2)], "track": TRACKS, "relation": KARTS}
    return [row.template.format(value) for row in CAPTIONS for value in values[row.caption_type]]


def answer_texts() -> list[str]:
    """Every answer to a question."""
    sides = ["left", "right", "front", "back"]
    where = [f"{a} and {b}" for a, b in itertools.product(("front", "back"), ("left", "right"))]
    return [*KARTS, *TRACKS, *(str(n) for n in range(MAX_COUNT + 2)), *sides, *where]


class SmallVocabulary:
    """Maps token ids to rows of a table of the `used` tokens and one row for the rest."""

    def __init__(self, tokens: PromptTokens):
        used = set(tokens.prefix) | {tokens.tokenizer.pad_token_id, tokens.tokenizer.eos_token_id, 0}
        for question, kart in itertools.product((*QUESTIONS, *REWORDED), KARTS):
            used.update(tokens.question(question.template.format(kart=kart)))
        for answer in answer_texts():
            used.update(tokens.answer(answer))
        for caption in caption_texts():
            used.update(tokens.tokenizer(caption)["input_ids"])
        used.update(tokens.tokenizer("0123456789")["input_ids"])
        self.used = torch.tensor(sorted(used))
        rest = VOCABULARY - len(self.used)
        self.count = torch.tensor([1] * len(self.used) + [rest])  # of the tokens of each row
        self.row = torch.full((VOCABULARY,), len(self.used))
        self.row[self.used] = torch.arange(len(self.used))

    def __len__(self) -> int:
        return len(self.used) + 1

    def cross_entropy(self, hidden: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """The loss over all 49,280 tokens. hidden [n, d], table [rows, d], labels [n] as rows -> [n]."""
        return cross_entropy(hidden, table, self.count, labels)

    def expand(self, embedding: nn.Embedding) -> Tensor:
        """The whole table [49280, d]."""
        return embedding.weight.detach()[self.row]

    def shrink(self, table: Tensor) -> Tensor:
        """The reverse of `expand`: the whole table -> the small one."""
        others = (self.row == len(self.used)).nonzero()[0]
        return table[torch.cat([self.used, others])]
