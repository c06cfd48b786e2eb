"""Count a model's parameters, in one way everywhere: those of adapters apart."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn

from .lora_weights import ADAPTER_WEIGHTS, is_adapter


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Args:
        total: of the model without LoRA matrices.
        embedding: of its token embedding.
        adapter: of LoRA matrices.
    """

    total: int
    embedding: int
    adapter: int

    @property
    def without_embedding(self) -> int:
        """Return the number of parameters that do not grow with the vocabulary."""
        return self.total - self.embedding

    def __str__(self) -> str:
        text = f"{self.total:,} parameters ({self.without_embedding:,} without token embedding)"
        return text + (f" and {self.adapter:,} of the adapter" if self.adapter else "")


def count_parameters(model: nn.Module, checkpoint: Path | None = None) -> ParameterCounts:
    """Count a model's parameters; `checkpoint` has those of an adapter that is merged into it."""
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    adapter = sum(size for name, size in sizes.items() if "lora_" in name)
    # other embeddings are of positions
    embedding = max(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    total = sum(sizes.values()) - adapter
    if not adapter and checkpoint and is_adapter(checkpoint):
        with safe_open(checkpoint / ADAPTER_WEIGHTS, "pt") as weights:
            adapter = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return ParameterCounts(total, embedding, adapter)
