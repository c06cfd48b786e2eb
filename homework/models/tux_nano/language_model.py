"""The embedded base's text model for answers, in PyTorch alone: transformers' Llama, down to the names of its weights.

What is trained is transformers' own, as of any base. It takes seconds to import, longer than it takes to answer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .vision import ModelOutput


class KVCache:
    """Each layer's keys and values of the tokens so far, [b, heads, s, head_dim]; used as transformers' caches are."""

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Of how many tokens."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add those of new tokens; gives those of all."""
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            old_key, old_value = self.layers[layer]
            self.layers[layer] = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        return self.layers[layer]

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.layers = [(key[rows], value[rows]) for key, value in self.layers]


class Attention(nn.Module):
    """Self-attention with rotary positions. [b, s, d] -> [b, s, d]."""

    def __init__(self, config):
        super().__init__()
        self.head_dim = config.head_dim
        width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, width, bias=False)

    def forward(self, x: Tensor, rotation: Tensor, mask: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        # [b, s, heads * head_dim] -> [b, heads, s, head_dim]
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, rotation), apply_rope(k, rotation)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        x = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(x.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """SwiGLU (arXiv:2002.05202). [b, s, d] -> [b, s, d]."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer. [b, s, d] -> [b, s, d]."""

    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, *context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *context)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """Embeddings, decoder layers and a last norm.

    Args:
        config: has the fields of a `LlamaConfig` without biases.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
    ) -> ModelOutput:
        """As transformers' `LlamaModel`.

        Args:
            input_ids: [b, s], or `inputs_embeds`, [b, s, d].
            attention_mask: 1 where there is a token, those of the cache first, and 0 where there is padding,
                [b, past + s]; or true where a row's token sees a column's, [b, 1, s, s].
            position_ids: [b, s]; without it they go on from the cache.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = KVCache() if use_cache and past_key_values is None else past_key_values
        past, length = 0 if cache is None else len(cache), x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=x.device)[None]
        rotation = rope_cos_sin(position_ids, self.config.head_dim, self.config.rope_parameters["rope_theta"])
        mask = attention_mask
        if mask is None or mask.ndim == 2:
            mask = causal_mask(mask, past, length, x.device)
        for number, layer in enumerate(self.layers):
            x = layer(x, rotation.to(x.dtype), mask, cache, number)
        return ModelOutput(self.norm(x), cache)


def causal_mask(there: Tensor | None, past: int, length: int, device: torch.device) -> Tensor:
    """True where one of `length` tokens sees one of `past + length`: those up to itself that are there.

    Padding sees itself, lest it see nothing.

    Args:
        there: [b, past + length], 1 or true where there is a token; all are without it.

    Returns:
        [b or 1, 1, length, past + length].
    """
    causal = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    if there is None:
        return causal[None, None]
    itself = torch.eye(length, dtype=torch.bool, device=device)
    return (causal & there.bool()[:, None] | F.pad(itself, (past, 0)))[:, None]


def rope_cos_sin(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Cosines and sines of the angles by which positions turn (arXiv:2104.09864). [b, s] -> [2, b, 1, s, head_dim]."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]  # [b, 1, s, head_dim]
    return torch.stack([angles.cos(), angles.sin()])


def apply_rope(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys [b, heads, s, head_dim] turned by `rope_cos_sin`: each half's i-th numbers are a point."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
