"""nano/: how the text model learns to read what the connector tells."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from homework.labels.questions import qa_pairs
from homework.models.loading import DEFAULT_BASE
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.modeling_hf import TuxNanoVisionConfig
from pretrain import cli as train
from pretrain.init_name_attention import look_up_names
from pretrain.synthetic_scenes import MOST, imagine, listing, recognised_of
from pretrain.targets import KARTS, TRACKS
from pretrain.text_stage import TextStage
from tests.tiny_models import SCENE, VISION


@pytest.fixture(scope="module")
def stage() -> TextStage:
    """A text stage on the small tower, whose names look for their karts' tokens."""
    torch.manual_seed(0)
    stage = TextStage(TuxNanoVisionConfig(**VISION), PromptTokens(AutoProcessor.from_pretrained(DEFAULT_BASE)))
    stage.weigh_facts()
    look_up_names(stage)
    return stage.eval()


def test_imagined_scenes_are_told_as_they_are():
    """Each has 1 to MOST karts of other names; the surest answers are those of the label rule."""
    rng = np.random.default_rng(0)
    scenes = imagine(rng, 200)
    assert {len(scene.karts) for scene in scenes} == set(range(1, MOST + 1))
    logits = recognised_of(scenes, rng)
    for row, scene in enumerate(scenes):
        assert len({kart.name for kart in scene.karts}) == len(scene.karts)
        assert KARTS[logits["ego"][row].argmax()] == scene.ego.name
        assert TRACKS[logits["track"][row].argmax()] == scene.track
        left = sum(scene.is_left(kart) for kart in scene.others)
        assert logits["total"][row].argmax() == len(scene.karts) and logits["count"][row, 0].argmax() == left
        there = {KARTS[i] for i in (logits["relation"][row, :, 0] > 0).nonzero()}
        assert there == {kart.name for kart in scene.others}
        for kart in scene.karts:
            of_kart = logits["relation"][row, KARTS.index(kart.name)] > 0
            if kart is not scene.ego:
                assert of_kart[1:].tolist() == [scene.is_left(kart), scene.is_front(kart)]
            y, x = logits["place"][row, KARTS.index(kart.name)] * 75
            assert (float(x) + 75, float(y) + 50) == pytest.approx(kart.center, abs=1e-3)


def test_a_list_names_all_others_with_their_sides():
    """In any order; it says of each what the questions say. Of a kart alone there is nothing to list."""
    answers = dict(qa_pairs(SCENE))
    orders = set()
    for seed in range(20):
        ((_, words, _),) = listing(SCENE, np.random.default_rng(seed))
        triples = list(zip(*[iter(words.split())] * 3, strict=True))
        orders.add(tuple(name for name, *_ in triples))
        for name, depth, side in triples:
            assert answers[f"Where is {name} relative to the ego car?"] == f"{depth} and {side}"
    assert orders == {("gnu", "xue"), ("xue", "gnu")}
    assert listing(type(SCENE)("abyss", SCENE.karts[:1]), np.random.default_rng(0)) == []


def test_a_name_looks_for_its_token(stage):
    """In the first head of the first layer, what only one kart's name has sees that kart's token most."""
    model, tokenizer = stage.model.model, stage.tokens.tokenizer
    attention, norm = model.text_model.layers[0].self_attn, model.text_model.layers[0].input_layernorm
    size, embedding = attention.head_dim, stage.model.get_input_embeddings()
    names = [stage.vocabulary.row[tokenizer(f" {kart}", add_special_tokens=False)["input_ids"]] for kart in KARTS]
    times = torch.cat([name.unique() for name in names]).bincount(minlength=len(embedding.weight))
    with torch.no_grad():
        slots = stage.connector.norm(stage.connector.slot.weight)  # tokens that tell nothing
        key = attention.k_proj(norm(slots))[:, :size]
        for number, name in enumerate(names):
            query = attention.q_proj(norm(embedding(name[times[name] == 1][-1])))[:size]
            assert (key @ query).argmax() == number, KARTS[number]
        other = attention.q_proj(norm(embedding(stage.vocabulary.row[tokenizer(" car")["input_ids"][0]])))[:size]
    assert (key @ other).abs().max() < 0.2 * (key @ query).max()


def test_that_head_stays_while_the_rest_learns(stage):
    """A step changes the other heads of the layer only."""
    stage.doubts = False
    stage.train()
    assert not stage.connector.training
    sum(stage.imagined_loss(np.random.default_rng(0)).values()).backward()
    for name in ("q_proj", "k_proj"):
        gradient = getattr(stage.model.model.text_model.layers[0].self_attn, name).weight.grad
        assert gradient[:32].abs().max() == 0 < gradient[32:].abs().max()


def test_reading_needs_no_frames(tmp_path):
    """One step from random weights, without a data folder: a checkpoint that the text stage begins with."""
    train.read(out=str(tmp_path), steps=1)
    saved = torch.load(tmp_path / "read.pt", weights_only=True)
    assert saved["step"] == 1 and "model.model.connector.kart.weight" in saved["model"]
