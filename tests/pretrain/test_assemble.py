"""Initial weights, and the export of a base."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from homework.models.loading import DEFAULT_BASE, load_processor
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.model import TuxNano
from homework.models.tux_nano.processor import TOKENIZER_FILE
from pretrain import checkpoints, cli
from pretrain.assemble import INIT_STD, VOCAB_SIZE
from pretrain.checkpoints import VISION_CONFIG, VisionStage, load_vision_stage
from pretrain.text_stage import TextStage
from pretrain.trainer import save_checkpoint
from tests.tiny_models import TEXT, VISION


@pytest.fixture(scope="module")
def stage() -> TextStage:
    """A text stage with random weights and the shipped sizes."""
    torch.manual_seed(0)
    return TextStage(VISION_CONFIG, PromptTokens(load_processor(DEFAULT_BASE)))


def test_initial_weights_have_their_standard_deviation(stage):
    """Convolutions have He et al.'s, linear layers and embeddings `INIT_STD`; all biases are 0."""
    torch.manual_seed(0)
    convolutions = [module for module in VisionStage().vision_encoder.modules() if isinstance(module, nn.Conv2d)]
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
def test_exported_base_has_the_weights_of_its_stages(tmp_path, monkeypatch):
    """A folder that holds a tokenizer only becomes a base; the saved stage is the one that was trained."""
    config = replace(VISION, batch_norm=True)
    monkeypatch.setattr(checkpoints, "VISION_CONFIG", config)
    monkeypatch.setattr(checkpoints, "VisionStage", lambda: VisionStage(config))
    monkeypatch.setattr(cli, "SAVED_STAGE", tmp_path / "stage.safetensors")
    monkeypatch.setattr("pretrain.assemble.TextConfig", lambda vocab_size: replace(TEXT, vocab_size=vocab_size))
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(Path(DEFAULT_BASE) / TOKENIZER_FILE, base)
    torch.manual_seed(0)
    trained = cli._make_text_stage().eval()
    for norm in trained.model.vision_encoder.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    save_checkpoint(tmp_path / "text.pt", 1, trained, {})
    cli.export(run_dir=str(tmp_path), output=str(base))
    model, pixels = TuxNano.load(base), torch.randn(2, 3, 100, 150)
    assert not model.config.vision.batch_norm and model.config.text.vocab_size == VOCAB_SIZE
    tokens, expected = (one.vision_encoder(pixels).last_hidden_state for one in (model, trained.model))
    assert torch.allclose(tokens, expected, atol=0.02) and expected.std() > 0.5
    table = trained.vocabulary.expand(trained.model.language_model.embed_tokens)
    assert torch.allclose(model.language_model.embed_tokens.weight, table, atol=1e-4)
    saved = load_vision_stage(tmp_path / "stage.safetensors").vision_encoder.eval()
    assert torch.allclose(saved(pixels).last_hidden_state, expected, atol=0.02)
    assert load_processor(str(base)).num_image_tokens == model.connector.slot_embedding.num_embeddings
