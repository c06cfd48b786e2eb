"""How sure a VLM is: the probability that it would give an answer, word for word."""

from collections.abc import Mapping, Sequence

import torch

from homework.base_vlm import BaseVLM
from homework.models.loading import unwrap
from homework.models.shared_vocab import SharedRowHead
from homework.training.packing import IGNORE, collate, pack
from homework.utils.progress import progress_bar

IMAGE_BATCH_SIZE = 16  # a view's pairs are one sequence of some 400 tokens, and attention grows with its square


@torch.inference_mode()
def probabilities(
    vlm: BaseVLM, pairs: Mapping[str, Sequence[tuple[str, str]]], progress: bool = False
) -> dict[str, list[float]]:
    """The probability, 0 to 1, of each answer and its end, given the image and the question.

    Args:
        pairs: image path -> its (question, answer) pairs, each of which is read on its own.
        progress: show a bar.

    Raises:
        InputError: an image is missing or broken.
    """
    paths, found = list(pairs), {}
    inner, vocabulary = unwrap(vlm.model).model, SharedRowHead(vlm.model.get_output_embeddings().weight)
    shown = progress_bar(total=len(paths), desc="how sure it is", unit="view", shown=progress)
    for start in range(0, len(paths), IMAGE_BATCH_SIZE):
        chunk = paths[start : start + IMAGE_BATCH_SIZE]
        packed = [pack(vlm.tokens, [(question, answer, 1.0) for question, answer in pairs[path]]) for path in chunk]
        batch = collate(packed, vlm.pixel_values(chunk), vlm.processor.tokenizer.pad_token_id)
        batch = {name: values.to(vlm.device) for name, values in batch.items()}
        labels, _ = batch.pop("labels"), batch.pop("weights")
        hidden = inner(**batch, use_cache=False).last_hidden_state  # [b, s, d]
        answered = labels != IGNORE
        at = iter((-vocabulary.cross_entropy(hidden[answered], labels[answered])).tolist())  # of each answer token
        for path, view in zip(chunk, packed, strict=True):
            sums = torch.zeros(len(pairs[path]))
            for branch, label in zip(view.branch, view.labels, strict=True):
                if label != IGNORE:
                    sums[branch - 1] += next(at)
            found[path] = sums.exp().tolist()
        shown.update(len(chunk))
    shown.close()
    return found
