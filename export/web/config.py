"""Collect what the page's scripts need beside the graphs: the vocabulary, the prompt and names."""

import json
from pathlib import Path

from homework.base_vlm import MAX_NEW_TOKENS
from homework.labels.game import KARTS, TRACKS
from homework.models.clip import CLIP
from homework.models.prompts import PromptTokens, chat_turn
from homework.models.shared_vocab import SharedRowHead
from homework.models.tux_nano.model import TuxNano
from homework.models.tux_nano.processor import TuxNanoProcessor


def page_config(vlm: TuxNano, clip: CLIP, processor: TuxNanoProcessor, head: SharedRowHead) -> dict:
    """Return the content of `config.json`; tokens are given by their row in the table of distinct embeddings."""
    tokens, text, image_id = PromptTokens(processor), vlm.config.text, vlm.config.image_token_id
    rows, image_row = head.row_of_token.tolist(), len(head.table)
    prefix = []
    for token in tokens.prefix:  # its image tokens are those after the table's last row
        prefix.append(image_row if token == image_id else rows[token])
        image_row += token == image_id
    before, after = chat_turn(processor, "\0").split("<image>")[1].split("\0")
    return {
        "vocabulary": vocabulary(processor, head),
        "prefix": prefix,
        "beforeQuestion": before,
        "afterQuestion": after,
        "end": rows[tokens.end],
        "eos": processor.tokenizer.eos_token,
        "maxNewTokens": MAX_NEW_TOKENS,
        "numTokens": head.num_tokens.tolist(),
        "cache": [text.num_layers, text.num_kv_heads, text.head_dim],
        "logitScale": clip.logit_scale.exp().item(),
        "logitBias": clip.logit_bias.item(),
        "karts": KARTS,
        "tracks": TRACKS,
    }


def vocabulary(processor: TuxNanoProcessor, head: SharedRowHead) -> dict:
    """Return the row of each token, with the most frequent one left out, and the token of each row."""
    backend = processor.tokenizer.backend
    special = {token.content for token in backend.get_added_tokens_decoder().values()}
    rows, other = head.row_of_token.tolist(), int(head.num_tokens.argmax())
    names = [backend.id_to_token(token) for token in head.token_of_row.tolist()]
    return {
        "rows": {name: rows[token] for name, token in backend.get_vocab().items() if rows[token] != other},
        "otherRow": other,
        "tokens": ["" if name is None or name in special else name for name in names],
        "special": sorted(special),
    }


def write_merges(processor: TuxNanoProcessor, file: Path) -> None:
    """Write the tokenizer's merges, a pair of tokens per line."""
    merges = json.loads(processor.tokenizer.backend.to_str())["model"]["merges"]
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
