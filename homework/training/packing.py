"""Pack all questions about one image into one sequence: the image once, then each question as a branch.

A branch attends to the image and to itself, not to its siblings, and its positions continue those of the image, so
loss and gradients are those of separate samples. Only answers and their end token carry loss.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..labels.questions import classify_question, sample_weight
from ..labels.rows import VQADataset, drop_rows_without_image
from ..models.images import load_views
from ..models.loading import backbone, output_embedding
from ..models.prompts import PromptTokens
from ..models.shared_vocab import SharedRowHead
from ..utils.io import fingerprint
from .held_out import drop_held_out
from .lora import PeftTrainingModule

IGNORE_INDEX = -100  # the label that carries no loss, as in torch's cross_entropy


class PackedVQADataset(Dataset):
    """The views of a split that have questions, each with all of its question-answer pairs.

    Over the split all question types weigh the same, and an average view's weights sum to 1. `lengths` holds how many
    pairs each view has.
    """

    def __init__(self, rows: Sequence[dict], cache_dir: Path | None = None):
        rows_of_image: dict[str, list[dict]] = {}
        for row in rows:
            rows_of_image.setdefault(row["image_path"], []).append(row)
        self.rows = list(rows_of_image.values())
        totals = Counter()
        for row in rows:
            question_type = classify_question(row["question"])
            totals[question_type] += sample_weight(question_type, row["answer"])
        self.type_weight = {name: len(self.rows) / (len(totals) * total) for name, total in totals.items()}
        self.lengths = [len(rows) for rows in self.rows]
        self.views = load_views(list(rows_of_image), cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path, pairs_dir: str | None = None) -> "PackedVQADataset":
        """Read a split's *_qa_pairs.json, by default in the data folder; images must exist and not be held out."""
        rows = drop_rows_without_image(VQADataset(split, data_dir, pairs_dir))
        return cls(drop_held_out(rows, data_dir, split), data_dir / ".cache")

    def fingerprint(self) -> str:
        """Return a digest of images by name, questions and answers."""
        rows = (row for rows in self.rows for row in rows)
        return fingerprint(row[name] for row in rows for name in ("image_file", "question", "answer"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[tuple[str, str, float]]]:
        """Return a view [100, 150, 3] uint8 and its (question, answer, weight)."""
        return self.views[index], [(row["question"], row["answer"], self._weight(row)) for row in self.rows[index]]

    def _weight(self, row: dict) -> float:
        question_type = classify_question(row["question"])
        return self.type_weight[question_type] * sample_weight(question_type, row["answer"])


@dataclass(frozen=True)
class PackedView:
    """One view with its pairs as a sequence; all lists have its length s.

    `labels` holds the token to predict at a position (already shifted), `IGNORE_INDEX` elsewhere; `weights` how much
    that token's loss counts; `segment_ids` is 0 for the prefix and 1, 2, ... for the pairs.
    """

    ids: list[int]
    positions: list[int]
    segment_ids: list[int]
    labels: list[int]
    weights: list[float]


def pack(tokens: PromptTokens, pairs: Sequence[tuple[str, str, float]]) -> PackedView:
    """Pack the (question, answer, weight) of one view. A pair's weight is spread over its answer's tokens."""
    start = len(tokens.prefix)
    ids, positions = list(tokens.prefix), list(range(start))
    segment_ids, labels, weights = [0] * start, [IGNORE_INDEX] * start, [0.0] * start
    for number, (question, answer, weight) in enumerate(pairs, 1):
        question_ids, answer_ids = tokens.question(question), tokens.answer(answer)
        # the end token is only ever predicted, so it has no position of its own
        length = len(question_ids) + len(answer_ids) - 1
        ids += question_ids + answer_ids[:-1]
        positions += range(start, start + length)
        segment_ids += [number] * length
        labels += [IGNORE_INDEX] * (len(question_ids) - 1) + answer_ids
        weights += [0.0] * (len(question_ids) - 1) + [weight / len(answer_ids)] * len(answer_ids)
    return PackedView(ids, positions, segment_ids, labels, weights)


def collate(views: Sequence[PackedView], pixel_values: Tensor, pad_id: int) -> dict[str, Tensor]:
    """Pad packed views on the right and stack them.

    Args:
        pixel_values: [b, 1, 3, h, w].

    Returns:
        input_ids, position_ids, labels, weights [b, s]; attention_mask [b, 1, s, s], true where a row's token attends
        to a column's; pixel_values.
    """
    length = max(len(view.ids) for view in views)

    def stack(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        rows = [getattr(view, name) for view in views]
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=dtype)

    segment_ids = stack("segment_ids", -1, torch.long)
    in_same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
    is_prefix = segment_ids[:, None, :] == 0
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {
        "input_ids": stack("ids", pad_id, torch.long),
        "position_ids": stack("positions", 0, torch.long),
        "labels": stack("labels", IGNORE_INDEX, torch.long),
        "weights": stack("weights", 0.0, torch.float32),
        "attention_mask": ((in_same_segment | is_prefix) & causal)[:, None],
        "pixel_values": pixel_values,
    }


def collate_views(items: list, processor, tokens: PromptTokens) -> dict[str, Tensor]:
    """Make a batch for `PackedTrainingModule` of items of `PackedVQADataset`."""
    images = [[view] for view, _ in items]
    pixels = processor.image_processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    return collate([pack(tokens, pairs) for _, pairs in items], pixels, processor.tokenizer.pad_token_id)


class PackedTrainingModule(PeftTrainingModule):
    """A generative model with LoRA that maps a packed batch to its loss.

    The vocabulary is large beside a small model, so logits are computed only where there is a label, and once for
    tokens that share a row of the output layer.
    """

    @cached_property
    def head(self) -> SharedRowHead:
        """The output layer, which LoRA leaves as it is."""
        return SharedRowHead(output_embedding(self.base))

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> dict[str, Tensor]:
        """Return `loss`: the weighted sum of the answer tokens' cross-entropies, per view. Arguments: see `collate`."""
        hidden_states = backbone(self.base)(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            use_cache=False,
        ).last_hidden_state  # [b, s, d]
        has_label = labels != IGNORE_INDEX
        loss = self.head.cross_entropy(hidden_states[has_label], labels[has_label])
        return {"loss": (loss * weights[has_label]).sum() / len(labels)}
