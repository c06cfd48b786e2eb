"""Bases of SmolVLM's architecture with random weights, for times and tests where there is no model hub."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import AutoProcessor, Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from homework.models.loading import DEFAULT_BASE
from homework.models.tux_nano import modeling_hf as nano_model  # noqa: F401 - transformers knows our base then
from homework.utils.cli import run

VOCABULARY = 49280
# of SmolVLM-256M-Instruct's config.json
SMOLVLM_TEXT = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
SMOLVLM_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
SMOLVLM_SCALE = 4


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


def save_smolvlm(folder: Path, config: Idefics3Config, prepare: Callable[[nn.Module], nn.Module]) -> None:
    """A base of SmolVLM's architecture with random weights, and its processor as SmolVLM's files set it up."""
    torch.manual_seed(0)
    prepare(Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    ours, size = AutoProcessor.from_pretrained(DEFAULT_BASE), config.vision_config.image_size
    images = Idefics3ImageProcessorPil(
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"longest_edge": 4 * size},
        max_image_size={"longest_edge": size},
    )
    tokens = (size // config.vision_config.patch_size // config.scale_factor) ** 2
    processor = Idefics3Processor(images, ours.tokenizer, image_seq_len=tokens, chat_template=ours.chat_template)
    processor.save_pretrained(folder)


def write(*, out: Path) -> None:
    """Write a base of SmolVLM-256M-Instruct's geometry with random weights, in bfloat16 as the published file.

    Args:
        out: its folder
    """
    # of random weights transformers' own are good enough
    save_smolvlm(out, smolvlm_config(SMOLVLM_TEXT, SMOLVLM_VISION, SMOLVLM_SCALE), lambda model: model.bfloat16())


if __name__ == "__main__":
    run(write)
