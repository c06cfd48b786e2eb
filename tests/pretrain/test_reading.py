"""Pretraining of the text model on synthetic scenes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from homework.labels.questions import qa_pairs
from homework.models.loading import DEFAULT_BASE, load_processor
from homework.models.prompts import PromptTokens
from pretrain.config import CPU_CONFIG, load_config
from pretrain.synthetic_scenes import MAX_KARTS, ideal_predictions, list_all_karts_qa, sample_scenes
from pretrain.targets import KARTS, TRACKS
from pretrain.text_stage import ReadStage
from tests.tiny_models import SCENE, VISION


@pytest.fixture(scope="module")
def stage() -> ReadStage:
    """The stage with a small vision encoder."""
    torch.manual_seed(0)
    config = replace(load_config(CPU_CONFIG), vision=VISION)
    return ReadStage(config, PromptTokens(load_processor(DEFAULT_BASE))).eval()


def test_ideal_predictions_agree_with_the_label_rule():
    """Synthetic scenes have 1 to MAX_KARTS distinct karts; the likeliest classes are those of the label rule."""
    rng = np.random.default_rng(0)
    scenes = sample_scenes(rng, 200)
    assert {len(scene.karts) for scene in scenes} == set(range(1, MAX_KARTS + 1))
    logits = ideal_predictions(scenes, rng)
    for row, scene in enumerate(scenes):
        assert len({kart.name for kart in scene.karts}) == len(scene.karts)
        assert KARTS[logits["ego"][row].argmax()] == scene.ego.name
        assert TRACKS[logits["track"][row].argmax()] == scene.track
        left = sum(scene.is_left(kart) for kart in scene.others)
        assert logits["total"][row].argmax() == len(scene.karts) and logits["count"][row, 0].argmax() == left
        present = {KARTS[i] for i in (logits["relation"][row, :, 0] > 0).nonzero()}
        assert present == {kart.name for kart in scene.others}
        for kart in scene.karts:
            relation = logits["relation"][row, KARTS.index(kart.name)] > 0
            if kart is not scene.ego:
                assert relation[1:].tolist() == [scene.is_left(kart), scene.is_front(kart)]
            y, x = logits["place"][row, KARTS.index(kart.name)] * 75
            assert (float(x) + 75, float(y) + 50) == pytest.approx(kart.center, abs=1e-3)


def test_listing_gives_all_other_karts_with_their_sides():
    """The order is random, the sides are those of the questions' answers; a kart alone has no listing."""
    answers = dict(qa_pairs(SCENE))
    orders = set()
    for seed in range(20):
        ((_, words, _),) = list_all_karts_qa(SCENE, np.random.default_rng(seed))
        triples = list(zip(*[iter(words.split())] * 3, strict=True))
        orders.add(tuple(name for name, *_ in triples))
        for name, depth, side in triples:
            assert answers[f"Where is {name} relative to the ego car?"] == f"{depth} and {side}"
    assert orders == {("gnu", "xue"), ("xue", "gnu")}
    assert list_all_karts_qa(type(SCENE)("abyss", SCENE.karts[:1]), np.random.default_rng(0)) == []


def test_names_attend_to_their_kart_tokens(stage):
    """In the first head, a token that is in one kart's name only attends most to that kart's token."""
    language_model, tokenizer = stage.model.language_model, stage.tokens.tokenizer
    attention, norm = language_model.layers[0].self_attn, language_model.layers[0].input_layernorm
    size, embedding = attention.head_dim, language_model.embed_tokens
    names = [stage.vocabulary.row[tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    times = torch.cat([name.unique() for name in names]).bincount(minlength=len(embedding.weight))
    with torch.no_grad():
        slots = stage.model.connector.norm(stage.model.connector.slot_embedding.weight)  # image tokens without content
        key = attention.k_proj(norm(slots))[:, :size]
        for number, name in enumerate(names):
            query = attention.q_proj(norm(embedding(name[times[name] == 1][-1])))[:size]
            assert (key @ query).argmax() == number, KARTS[number]
        other = attention.q_proj(norm(embedding(stage.vocabulary.row[tokenizer(" car")["input_ids"][0]])))[:size]
    assert (key @ other).abs().max() < 0.2 * (key @ query).max()


def test_name_matching_head_is_frozen(stage):
    """Only the layer's other heads get gradients."""
    stage.train()
    assert not stage.model.connector.training
    sum(stage.losses(stage.sample(np.random.default_rng(0), as_rendered=False)).values()).backward()
    for name in ("q_proj", "k_proj"):
        gradient = getattr(stage.model.language_model.layers[0].self_attn, name).weight.grad
        assert gradient[:32].abs().max() == 0 < gradient[32:].abs().max()


@torch.no_grad()
def test_slots_can_be_read_out_as_names(stage):
    """A kart's image token is most like the embeddings of its own name, which are the output layer too."""
    embedding, tokenizer = stage.model.language_model.embed_tokens, stage.tokens.tokenizer
    names = [stage.vocabulary.row[tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    words = torch.nn.functional.normalize(torch.stack([embedding(name).sum(0) for name in names]), dim=1)
    slots = stage.model.connector.slot_embedding.weight[: len(KARTS)]
    # without the codes, which do not concern the output
    codes = stage.model.language_model.layers[0].self_attn.k_proj.weight[: stage.config.text.head_dim]
    basis = torch.linalg.qr(codes[codes.norm(dim=1) > 0].T)[0]
    free = lambda vectors: vectors - vectors @ basis @ basis.T
    similarity = torch.nn.functional.normalize(free(slots), dim=1) @ torch.nn.functional.normalize(free(words), dim=1).T
    assert similarity.argmax(1).tolist() == list(range(len(KARTS))) and similarity.diag().min() > 0.9
