"""The submission: a vision language model and a CLIP for SuperTuxKart, and what makes and measures them."""

from importlib import import_module

# Loaded on first use: making question-answer pairs needs no torch.
_EXPORTS = {
    "BaseVLM": ("base_vlm", "BaseVLM"),
    "VQADataset": ("data", "VQADataset"),
    "benchmark": ("data", "benchmark"),
    "train": ("finetune", "train"),
    "load_vlm": ("finetune", "load"),
    "load_clip": ("clip", "load"),
    "data": ("data", None),
}
__all__ = ["BaseVLM", "VQADataset", "benchmark", "load_clip", "load_vlm", "train"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    loaded = import_module(f".{module}", __name__)
    return getattr(loaded, attribute) if attribute else loaded
