"""Two tiny bases with random weights, as folders: our own architecture, and SmolVLM's."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads than one only slow down models as small as these

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from homework.base_vlm import BaseVLM
from homework.checkpoint import EMBEDDED_BASE, add_lora, load_base
from homework.nano_model import TuxNanoForConditionalGeneration, TuxNanoVisionConfig
from nano.base import VOCABULARY, make_config

torch.set_num_threads(1)

TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
VISION = {
    "channels": (8, 16, 16, 24),
    "blocks": (0, 1, 1, 1),
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


@torch.no_grad()
def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights so large that image and question decide the answer.

    At the usual small ones the residual stream is little more than the last token's embedding, and a model
    answers everything alike.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or ".stages." in name:
            continue
        gain = 0.1 if "embed_tokens" in name else 2.5 * weight[0].numel() ** -0.5
        weight.normal_(0, gain, generator=generator)
    return model


def save_tiny_nano(folder: Path) -> None:
    """The embedded base's architecture, narrow, with the shipped processor; its embedding is tied."""
    config = make_config(TuxNanoVisionConfig(**VISION))
    for name, value in TEXT.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    stir(TuxNanoForConditionalGeneration(config)).save_pretrained(folder)
    AutoProcessor.from_pretrained(EMBEDDED_BASE).save_pretrained(folder)


def smolvlm_config(text: dict, vision: dict, scale_factor: int) -> Idefics3Config:
    """A stock Idefics3 with SmolVLM's ids, and as there with a language head of its own."""
    ids = {"bos_token_id": 1, "eos_token_id": 49279, "pad_token_id": 2}
    text = {"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 2048, **ids, **text}
    return Idefics3Config(
        text_config=text,
        vision_config={"model_type": "idefics3_vision", **vision},
        image_token_id=49190,
        scale_factor=scale_factor,
        tie_word_embeddings=False,
        **ids,
    )


def save_smolvlm(folder: Path, config: Idefics3Config, prepare: Callable = stir) -> None:
    """A base of SmolVLM's architecture with random weights, and its processor as SmolVLM's files set it up."""
    torch.manual_seed(0)
    prepare(Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    ours, size = AutoProcessor.from_pretrained(EMBEDDED_BASE), config.vision_config.image_size
    images = Idefics3ImageProcessorPil(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"longest_edge": 4 * size},
        max_image_size={"longest_edge": size},
    )
    tokens = (size // config.vision_config.patch_size // config.scale_factor) ** 2
    processor = Idefics3Processor(images, ours.tokenizer, image_seq_len=tokens, chat_template=ours.chat_template)
    processor.save_pretrained(folder)


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    """A tiny base of our own architecture."""
    folder = tmp_path_factory.mktemp("bases") / "tiny_nano"
    save_tiny_nano(folder)
    return folder


@pytest.fixture(scope="session")
def smol_folder(tmp_path_factory) -> Path:
    """A tiny base of SmolVLM's architecture, its text model as wide as `nano_folder`'s."""
    folder = tmp_path_factory.mktemp("bases") / "tiny_smolvlm"
    vision = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    save_smolvlm(folder, smolvlm_config(TEXT, {"image_size": 64, "patch_size": 16, **vision}, scale_factor=2))
    return folder


@pytest.fixture(scope="session", params=["nano", "smolvlm"])
def base_folder(request) -> Path:
    """Each of the two tiny bases."""
    return request.getfixturevalue({"nano": "nano_folder", "smolvlm": "smol_folder"}[request.param])


@pytest.fixture(scope="session")
def loaded(base_folder):
    """(model, processor) of a tiny base; not to be changed."""
    return load_base(str(base_folder))


@pytest.fixture(scope="session")
def loaded_nano(nano_folder):
    """(model, processor) of the tiny base of our own architecture; not to be changed."""
    return load_base(str(nano_folder))


@pytest.fixture
def vlm(loaded) -> BaseVLM:
    """A BaseVLM of a tiny base; its model is not to be changed."""
    return BaseVLM.from_parts(*loaded)


@pytest.fixture
def adapted(base_folder) -> BaseVLM:
    """A tiny base with LoRA whose weights are all random, where new ones are half zero."""
    model, processor = load_base(str(base_folder))
    peft_model = add_lora(model, 4, str(base_folder))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in peft_model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.05, generator=generator)
    return BaseVLM.from_parts(peft_model, processor)


@pytest.fixture(scope="session")
def views(tmp_path_factory) -> list[Path]:
    """Four images, each of another pattern."""
    folder, rng = tmp_path_factory.mktemp("views"), np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        coarse.resize((150, 100), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def no_progress(tiny_data) -> Path:
    """`tiny_data` whose valid split has images but no frames: nothing is asked of it while training."""
    for info in (tiny_data / "valid").glob("*_info.json"):
        info.unlink()
    shutil.rmtree(tiny_data / ".cache", ignore_errors=True)
    return tiny_data
