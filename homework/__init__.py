"""The submission: a vision language model and a CLIP for SuperTuxKart, and what makes and measures them."""

import atexit
import gc
import signal
import sys
from importlib import import_module

# Python looks for garbage after every 700 new objects or so, and through all of them before a process ends. Importing
# torch and transformers makes a million and hardly any garbage: with fewer such searches a command that imports both
# takes 2 s less.
gc.set_threshold(20_000)
atexit.register(gc.freeze)

# Until `enable_keyboard_interrupt`, Ctrl-C just ends a command (`python -m homework...`): its imports take seconds, and what they
# make of a KeyboardInterrupt is a traceback, or nothing.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
