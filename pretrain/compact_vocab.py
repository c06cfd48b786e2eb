"""A compact vocabulary of the tokens that occur in the texts to pretrain with, and of common English.

All other of the 49,280 tokens share one embedding, so training needs a single row for them. The softmax counts that
row once per such token, which gives the loss over the full vocabulary; the exported table repeats the row, which
compresses well.
"""

import itertools

import torch
from torch import Tensor, nn

from homework.labels.questions import CAPTIONS, QUESTIONS
from homework.models.prompts import PromptTokens
from homework.models.shared_vocab import cross_entropy

from .assemble import VOCAB_SIZE
from .paraphrases import WORDINGS
from .targets import KARTS, MAX_COUNT, TRACKS


def caption_texts() -> list[str]:
    """List every caption that can be true of a frame of the game, in a fixed order."""
    values = {"ego": KARTS, "total": [str(n) for n in range(1, MAX_COUNT + 2)], "track": TRACKS, "relation": KARTS}
    return [row.template.format(value) for row in CAPTIONS for value in values[row.caption_type]]


def answer_texts() -> list[str]:
    """List every answer to a question."""
    sides = ["left", "right", "front", "back"]
    where = [f"{a} and {b}" for a, b in itertools.product(("front", "back"), ("left", "right"))]
    return [*KARTS, *TRACKS, *(str(n) for n in range(MAX_COUNT + 2)), *sides, *where]


class CompactVocabulary:
    """Map token ids to rows of a table of the `used` tokens and one row for all others.

    Args:
        common_tokens: how many tokens have a row whether or not they are in a text. A tokenizer merges the most
            frequent pairs first, so its first tokens are the most common words and parts of words.
    """

    def __init__(self, tokens: PromptTokens, common_tokens: int = 0):
        used = set(tokens.prefix) | {tokens.tokenizer.pad_token_id, tokens.end, *range(max(1, common_tokens))}
        texts = [row.template for row in QUESTIONS] + [text for texts in WORDINGS.values() for text in texts]
        # words are tokenized one by one, with the space before them
        words = sorted({word for text in texts for word in text.replace("{kart}", "").split()})
        for text in (*texts[: len(QUESTIONS)], *words, *(f"The {word}" for word in words)):
            used.update(tokens.question(text))
        for kart in KARTS:
            used.update(tokens.question(f"{kart}: is {kart}?"))
        for answer in answer_texts():
            used.update(tokens.answer(answer))
        for caption in caption_texts():
            used.update(tokens.tokenizer(caption)["input_ids"])
        used.update(tokens.tokenizer("0123456789")["input_ids"])
        self.used = torch.tensor(sorted(used))
        rest = VOCAB_SIZE - len(self.used)
        self.count = torch.tensor([1] * len(self.used) + [rest])  # tokens per row
        self.row = torch.full((VOCAB_SIZE,), len(self.used))
        self.row[self.used] = torch.arange(len(self.used))

    def __len__(self) -> int:
        return len(self.used) + 1

    def cross_entropy(self, hidden: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss over all 49,280 tokens: hidden [n, d], table [rows, d], labels [n] as rows -> [n]."""
        return cross_entropy(hidden, table, self.count.to(table.device), labels)

    def expand(self, embedding: nn.Embedding) -> Tensor:
        """Build the full table [49280, d]."""
        return embedding.weight.detach()[self.row]
