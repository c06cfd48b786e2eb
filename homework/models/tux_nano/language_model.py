"""TuxNano's language model: a Llama (arXiv:2302.13971) in plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import TextConfig
from .vision import ModelOutput


class KVCache:
    """Keys and values of each layer for the tokens so far, [b, heads, s, head_dim]."""

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """Return the number of cached tokens."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append a layer's keys and values of new tokens, and return those of all tokens."""
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            old_key, old_value = self.layers[layer]
            self.layers[layer] = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        return self.layers[layer]

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; named as in transformers' caches."""
        self.layers = [(key[rows], value[rows]) for key, value in self.layers]


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions. [b, s, d] -> [b, s, d]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.head_dim = config.head_dim
        dim, kv_dim = config.hidden_size, config.num_kv_heads * config.head_dim
        q_dim = config.num_heads * config.head_dim
        self.q_proj = nn.Linear(dim, q_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_dim, bias=False)
        self.o_proj = nn.Linear(q_dim, dim, bias=False)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        # [b, s, heads * head_dim] -> [b, heads, s, head_dim]
        projections = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (values.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for values in projections)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        x = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(x.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """A gated MLP (arXiv:2002.05202). [b, s, d] -> [b, s, d]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A pre-norm decoder layer. [b, s, d] -> [b, s, d]."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn, self.mlp = Attention(config), SwiGLU(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Token embedding, decoder layers and a final norm."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
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
        """Return hidden states [b, s, d] and the cache; called as transformers' `LlamaModel` is.

        Args:
            input_ids: [b, s]; or `inputs_embeds`, [b, s, d].
            attention_mask: 1 for tokens, cached ones first, and 0 for padding, [b, cached + s]; or a boolean mask, true
                where a row's token attends to a column's, [b, 1, s, s].
            position_ids: [b, s]; without it they continue those of the cache.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = KVCache() if use_cache and past_key_values is None else past_key_values
        num_cached, length = 0 if cache is None else len(cache), x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(num_cached, num_cached + length, device=x.device)[None]
        rope = rope_cos_sin(position_ids, self.config.head_dim, self.config.rope_theta).to(x.dtype)
        mask = x.new_ones(len(x), num_cached + length) if attention_mask is None else attention_mask
        if mask.ndim == 2:
            mask = causal_mask(mask, num_cached)
        for number, layer in enumerate(self.layers):
            x = layer(x, rope, mask, cache, number)
        return ModelOutput(self.norm(x), cache)


def causal_mask(is_token: Tensor, num_cached: int) -> Tensor:
    """Return a mask, true where a new token attends to one of all tokens. [b, all] -> [b, 1, new, all] bool.

    Each attends to itself and to the tokens before it. So does padding, since a row without a true value gives NaN.

    Args:
        is_token: 1 or true for tokens, 0 for padding; the first `num_cached` are not new.
    """
    itself = torch.eye(is_token.shape[1], dtype=torch.bool, device=is_token.device)[num_cached:]  # [new, all]
    causal = torch.ones_like(itself).tril(num_cached)
    return (causal & is_token.bool()[:, None] | itself)[:, None]


def rope_cos_sin(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """Return cosines and sines of the rotary angles (arXiv:2104.09864). [b, s] -> [2, b, 1, s, head_dim]."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = (positions[..., None] * frequencies).repeat(1, 1, 2)[:, None]  # [b, 1, s, head_dim]
    return torch.stack([angles.cos(), angles.sin()])


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate queries or keys [b, heads, s, head_dim]; dimensions i and i + head_dim / 2 are a pair."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
