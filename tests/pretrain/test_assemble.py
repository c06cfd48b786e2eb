"""Initial weights, and the export of a base."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from homework.models.loading import DEFAULT_BASE, load_processor
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.model import TuxNano
from pretrain.assemble import INIT_STD, VOCAB_SIZE, export_base
from pretrain.config import CPU_CONFIG, load_config
from pretrain.text_stage import TextStage
from pretrain.vision_stages import VisionStage
from tests.pretrain.tiny_run import tiny_config

CONFIG = load_config(CPU_CONFIG)


@pytest.fixture(scope="module")
def stage() -> TextStage:
    """A text stage with random weights and the shipped sizes."""
    torch.manual_seed(0)
    return TextStage(CONFIG, PromptTokens(load_processor(DEFAULT_BASE)))


def test_initial_weights_have_their_standard_deviation(stage):
    """Convolutions have He et al.'s, linear layers and embeddings `INIT_STD`; all biases are 0."""
    torch.manual_seed(0)
    convolutions = [module for module in VisionStage(CONFIG).vision_encoder.modules() if isinstance(module, nn.Conv2d)]
    layers = [module for module in stage.model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    assert convolutions and layers
    for module in (*convolutions, *layers):
        is_conv = isinstance(module, nn.Conv2d)
        expected = math.sqrt(2 / module.weight[0].numel()) if is_conv else INIT_STD
        assert module.weight.std().item() == pytest.approx(expected, rel=0.15), module
        assert getattr(module, "bias", None) is None or module.bias.abs().max() == 0


@torch.no_grad()
def test_a_new_text_stage_predicts_all_tokens_equally(stage):
    """Its loss is that of a uniform distribution over the full vocabulary, in nats."""
    hidden, table = torch.randn(50, 192), stage.model.language_model.embed_tokens.weight
    loss = stage.vocabulary.cross_entropy(hidden, table, torch.arange(50))
    assert loss.mean().item() == pytest.approx(math.log(VOCAB_SIZE), abs=0.3)


@torch.no_grad()
def test_exported_base_has_the_weights_of_its_stages(tmp_path):
    """Batch norms are folded, the vocabulary is expanded, and the tokenizer lies beside the weights."""
    torch.manual_seed(0)
    trained = TextStage(tiny_config(tmp_path), PromptTokens(load_processor(DEFAULT_BASE))).eval()
    for norm in trained.model.vision_encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    base = tmp_path / "base"
    export_base(trained, Path(DEFAULT_BASE), base)
    model, pixels = TuxNano.load(base), torch.randn(2, 3, 100, 150)
    assert not model.config.vision.batch_norm and model.config.text.vocab_size == VOCAB_SIZE
    tokens, expected = (one.vision_encoder(pixels).last_hidden_state for one in (model, trained.model))
    assert torch.allclose(tokens, expected, atol=0.02) and expected.std() > 0.5
    table = trained.vocabulary.expand(trained.model.language_model.embed_tokens)
    assert torch.allclose(model.language_model.embed_tokens.weight, table, atol=1e-4)
    assert load_processor(str(base)).num_image_tokens == model.connector.slot_embedding.num_embeddings
