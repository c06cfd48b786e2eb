"""Write SmolVLM-256M with random weights, for benchmarks and tests without a model hub.

Config, tokenizer and processor are SmolVLM-256M-Instruct's own files (`smolvlm_256m.tar.xz`).
"""

import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from homework.utils.cli import run

FILES = Path(__file__).with_name("smolvlm_256m.tar.xz")


def save_smolvlm(folder: Path, prepare: Callable, changes: dict[str, dict] | None = None) -> None:
    """Write SmolVLM's files and a randomly initialised model, changed by `prepare`, as the hub stores them.

    Args:
        changes: file name -> settings to replace in it; those of a dictionary are replaced one by one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(FILES) as archive:
        for member in archive:
            (folder / member.name).write_bytes(archive.extractfile(member).read())
    for name, settings in (changes or {}).items():
        content = json.loads((folder / name).read_text())
        for key, value in settings.items():
            content[key] = content[key] | value if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(content, indent=2))
    torch.manual_seed(0)
    model = prepare(AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder)))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # with a config that only this transformers writes
        model.save_pretrained(temporary)
        (Path(temporary) / "model.safetensors").rename(folder / "model.safetensors")


def write(*, output: Path) -> None:
    """Write a base with SmolVLM-256M-Instruct's files and random weights, in bfloat16 like the published one.

    Example: python -m benchmarks.random_smolvlm --output runs/random_smolvlm

    Args:
        output: its folder.
    """
    save_smolvlm(output, lambda model: model.bfloat16())


if __name__ == "__main__":
    run(write)
