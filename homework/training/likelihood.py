"""Compute the probability that a VLM assigns to an answer, token by token."""

import math
from collections.abc import Mapping, Sequence

import torch

from ..models.loading import backbone, output_embedding
from ..models.shared_vocab import SharedRowHead
from ..utils.progress import progress_bar
from .packing import IGNORE_INDEX, collate, pack

IMAGE_BATCH_SIZE = 16  # an image's pairs form one sequence of about 400 tokens; attention is quadratic in it


@torch.inference_mode()
def compute_probabilities(
    vlm, pairs: Mapping[str, Sequence[tuple[str, str]]], show_progress: bool = False
) -> dict[str, dict[tuple[str, str], float]]:
    """Compute the probability, 0 to 1, of each answer with its end token, given the image and the question.

    Args:
        vlm: a `BaseVLM`.
        pairs: image path -> (question, answer) pairs, which do not attend to each other.
        show_progress: whether to show a progress bar.

    Raises:
        InputError: an image is missing or broken.
    """
    paths, probabilities = list(pairs), {}
    head = SharedRowHead(output_embedding(vlm.model))
    starts = range(0, len(paths), IMAGE_BATCH_SIZE)
    for start in progress_bar(starts, desc="answer probabilities", unit="batch", shown=show_progress):
        chunk = paths[start : start + IMAGE_BATCH_SIZE]
        packed = [pack(vlm.tokens, [(question, answer, 1.0) for question, answer in pairs[path]]) for path in chunk]
        batch = collate(packed, vlm.pixel_values(chunk), vlm.processor.tokenizer.pad_token_id)
        batch = {name: values.to(vlm.device) for name, values in batch.items()}
        labels, _ = batch.pop("labels"), batch.pop("weights")
        hidden_states = backbone(vlm.model)(**batch, use_cache=False).last_hidden_state  # [b, s, d]
        is_answer = labels != IGNORE_INDEX
        losses = iter(head.cross_entropy(hidden_states[is_answer], labels[is_answer]).tolist())  # in reading order
        for path, view in zip(chunk, packed, strict=True):
            log_probs = [0.0] * len(pairs[path])
            for segment, label in zip(view.segment_ids, view.labels, strict=True):
                if label != IGNORE_INDEX:
                    log_probs[segment - 1] -= next(losses)
            probabilities[path] = dict(zip(pairs[path], map(math.exp, log_probs), strict=True))
    return probabilities
