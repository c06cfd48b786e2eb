"""nano/: the text stage's vocabulary and words."""

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoProcessor

from homework.checkpoint import EMBEDDED_BASE
from homework.errors import InputError
from homework.nano_vision import TuxNanoVisionConfig, TuxNanoVisionModel
from homework.packing import PromptTokens
from homework.questions import KINDS, QUESTIONS, ask, captions, qa_pairs
from nano.base import VOCABULARY, make_processor
from nano.dense import DenseHeads, forward
from nano.start import begin_text_with
from nano.targets import KARTS, MAX_COUNT
from nano.text import TextStage, sample_pairs
from nano.vocabulary import SmallVocabulary, answer_texts, caption_texts
from nano.wording import REWORDED

from .conftest import SCENE, VISION


@pytest.fixture(scope="module")
def tokens() -> PromptTokens:
    """Prompt parts with the shipped tokenizer, for the small tower."""
    tokenizer = AutoProcessor.from_pretrained(EMBEDDED_BASE).tokenizer
    return PromptTokens(make_processor(tokenizer, TuxNanoVisionConfig(**VISION)))


@pytest.fixture(scope="module")
def vocabulary(tokens) -> SmallVocabulary:
    """The small vocabulary."""
    return SmallVocabulary(tokens)


def test_small_vocabulary_is_the_full_softmax(vocabulary):
    """Training with the small table minimises the loss of the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    embedding = nn.Embedding(len(vocabulary), 16, dtype=torch.float64)
    with torch.no_grad():
        embedding.weight.normal_(generator=generator)
    hidden = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    ids = vocabulary.used[torch.randint(len(vocabulary.used), (20,), generator=generator)]
    small = vocabulary.cross_entropy(hidden, embedding.weight, vocabulary.row[ids])
    table = vocabulary.expand(embedding)
    assert table.shape == (VOCABULARY, 16)
    full = F.cross_entropy(hidden @ table.T, ids, reduction="none")
    assert torch.allclose(small, full, rtol=1e-10)


def test_small_vocabulary_knows_every_text(vocabulary, tokens):
    """No token of a prompt, question, answer or caption falls among the unused ones."""
    texts = [tokens.prefix, *map(tokens.answer, answer_texts()), *map(tokens.question, (q for q, _ in qa_pairs(SCENE)))]
    texts += [tokens.tokenizer(text + tokens.tokenizer.eos_token)["input_ids"] for text in caption_texts()]
    assert {i for ids in texts for i in ids} <= set(vocabulary.used.tolist())
    assert set(captions(SCENE)) <= set(caption_texts())
    assert {answer for _, answer in qa_pairs(SCENE)} <= set(answer_texts())
    assert len(vocabulary.used) < 500


def test_base_learns_other_words_for_the_same_answers():
    """The base is asked what the course asks, for the same answers, but never in the course's words."""
    rng = np.random.default_rng(0)
    official, asked = dict(qa_pairs(SCENE)), [pair for _ in range(50) for pair in sample_pairs(SCENE, rng)]
    assert not official.keys() & {question for question, *_ in asked}
    by_template = {row.template: row for row in REWORDED}
    assert len(by_template) == len(REWORDED) == 3 * len(QUESTIONS)
    kinds = Counter(row.kind for row, question, _ in ask(SCENE, REWORDED) if question in {q for q, *_ in asked})
    assert set(kinds) == set(KINDS)
    answers = {question: answer for _, question, answer in ask(SCENE, REWORDED)}
    assert all(answers[question] == answer for question, answer, _ in asked)
    assert answers["Does gnu drive to the left or right of the ego car?"] == "left"
    assert answers["Tell the place of xue relative to the ego car."] == "back and right"
    assert answers["Count the karts in front of the ego car."] == "1"


def test_a_text_stage_begins_with_another_s_text_model(tokens, tmp_path):
    """All but tower and heads is taken over; a dense stage's checkpoint is refused in one line."""
    torch.manual_seed(0)
    first, second = (TextStage(TuxNanoVisionConfig(**VISION), tokens) for _ in range(2))
    file = tmp_path / "text.pt"
    torch.save({"step": 1, "model": first.state_dict(), "optimizer": {}}, file)
    tower = {name: weight.clone() for name, weight in second.tower.state_dict().items()}
    begin_text_with(second, file)
    for name, weight in first.state_dict().items():
        same = torch.equal(weight, second.state_dict()[name])
        assert same or name.startswith(("heads.", "model.model.vision_model.", "clip.vision_encoder.")), name
    assert all(torch.equal(weight, second.tower.state_dict()[name]) for name, weight in tower.items())
    learning = {name for name, weight in second.named_parameters() if weight.requires_grad}
    assert learning and not any(name.startswith(("heads.", "model.model.vision_model.")) for name in learning)
    # heads that are held still have nothing to learn from the boxes
    losses = second.losses(torch.zeros(1, 3, 100, 150), {}, [SCENE], np.random.default_rng(0), whole=True)
    assert losses.keys() == {"captions", "questions"} and all(loss > 0 for loss in losses.values())
    torch.save({"step": 1, "model": {"tower.norm.weight": torch.zeros(1)}, "optimizer": {}}, file)
    with pytest.raises(InputError, match=r"text\.pt: not a checkpoint of this stage"):
        begin_text_with(second, file)


def reading_stage(tokens: PromptTokens, seed: int) -> TextStage:
    """A small text stage whose tower has a readout."""
    torch.manual_seed(seed)
    return TextStage(TuxNanoVisionConfig(**VISION, num_karts=len(KARTS), num_counts=MAX_COUNT + 1), tokens)


def test_tower_reads_its_summary_as_the_heads_do(tokens):
    """The readout gets what the dense stage taught: its relations, its counts, and the total as the last number."""
    stage = reading_stage(tokens, 0)
    config = TuxNanoVisionConfig(**VISION)
    tower, heads = TuxNanoVisionModel(config).eval(), DenseHeads(config).eval()
    stage.take_over(tower, heads)
    with torch.no_grad():
        logits, encoded = forward(tower, heads, torch.randn(2, 3, 100, 150))
        read = stage.tower.readout.head(encoded[:, : config.num_summary_tokens].flatten(1))
    expected = [logits["relation"].flatten(1), logits["count"].flatten(1), logits["total"]]
    assert torch.allclose(read, torch.cat(expected, dim=1), atol=1e-5)


def test_a_text_stage_begins_with_an_exported_base(tokens, tmp_path):
    """The base's text model is taken over, its table cut down; what reads for it goes on learning."""
    first, second = reading_stage(tokens, 0), reading_stage(tokens, 1)
    weights = {name: weight.clone() for name, weight in first.model.state_dict().items() if name != "lm_head.weight"}
    table = first.vocabulary.expand(first.model.get_input_embeddings())
    save_file(weights | {"model.text_model.embed_tokens.weight": table}, tmp_path / "model.safetensors")
    begin_text_with(second, tmp_path / "model.safetensors")
    for name, weight in first.model.state_dict().items():
        of_tower = "vision_model" in name and (".readout." not in name or ".readout.head." in name)
        assert torch.equal(weight, second.model.state_dict()[name]) != of_tower or weight.std() == 0, name
    learning = {name for name, weight in second.tower.named_parameters() if weight.requires_grad}
    assert learning == {f"readout.{name}" for name in ("kart.weight", "number.weight", "slot.weight")} | {
        "readout.norm.weight",
        "readout.norm.bias",
    }
