"""The decoding loop: greedy or with a temperature, for every base."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .loading import backbone
from .prompts import PromptTokens
from .shared_vocab import SharedRowHead


def prefill_image_prefix(model: nn.Module, tokens: PromptTokens, pixel_values: Tensor):
    """Return the key-value cache of the prompts' common start, a row per image of [b, 1, 3, h, w]."""
    prefix = torch.tensor([tokens.prefix] * len(pixel_values), device=pixel_values.device)
    mask = torch.ones_like(prefix)
    output = backbone(model)(input_ids=prefix, attention_mask=mask, pixel_values=pixel_values, use_cache=True)
    return output.past_key_values


def decode(
    model: nn.Module,
    head: SharedRowHead,
    tokens: PromptTokens,
    cache,
    image_rows: Sequence[int],
    questions: Sequence[str],
    max_new_tokens: int,
    temperature: float = 0.0,
) -> list[str]:
    """Answer `questions[i]` about the image in row `image_rows[i]` of the cache, all in one batch.

    Args:
        head: the model's output layer.
        cache: see `prefill_image_prefix`; it is left as it is.
        temperature: 0 takes the most likely token, more draws from the softmax.
    """
    device = head.table.device
    cache = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor(image_rows, device=device))
    question_ids = [tokens.question(question) for question in questions]
    length, start = max(map(len, question_ids)), len(tokens.prefix)
    padding = [length - len(ids) for ids in question_ids]  # on the left
    input_ids = torch.tensor(
        [[tokens.end] * n + ids for n, ids in zip(padding, question_ids, strict=True)], device=device
    )
    is_token = torch.tensor([[0] * n + [1] * (length - n) for n in padding], device=device)
    attention_mask = torch.cat([is_token.new_ones(len(questions), start), is_token], dim=1)  # [b, prefix + question]
    position_ids = (start + is_token.cumsum(1) - 1).clamp(min=0)
    answers: list[list[int]] = [[] for _ in questions]
    active_rows = list(range(len(questions)))
    for _ in range(max_new_tokens):
        hidden_states = backbone(model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        token = head.sample_token(hidden_states, temperature) if temperature else head.argmax_token(hidden_states)
        for row, token_id in zip(active_rows, token.tolist(), strict=True):
            answers[row].append(token_id)
        unfinished = (token != tokens.end).nonzero()[:, 0]
        if not len(unfinished):
            break
        if len(unfinished) < len(token):  # finished sequences are dropped from the batch
            cache.batch_select_indices(unfinished)
            token, attention_mask = token[unfinished], attention_mask[unfinished]
            position_ids = position_ids[unfinished]
            active_rows = [active_rows[i] for i in unfinished.tolist()]
        input_ids = token[:, None]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(token), 1)], dim=1)
        position_ids = position_ids[:, -1:] + 1
    return [tokens.decode(answer) for answer in answers]
