"""The text stage: compact vocabulary, paraphrases, initial weights."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homework.labels.questions import QUESTION_TYPES, QUESTIONS, captions, generate_questions, qa_pairs
from homework.models.loading import DEFAULT_BASE, load_processor
from homework.models.prompts import PromptTokens
from homework.utils.errors import InputError
from pretrain.assemble import VOCAB_SIZE
from pretrain.checkpoints import VisionStage
from pretrain.compact_vocab import CompactVocabulary, answer_texts, caption_texts
from pretrain.paraphrases import PARAPHRASED_QUESTIONS
from pretrain.text_stage import TextStage, sample_pairs
from pretrain.trainer import load_checkpoint
from tests.tiny_models import SCENE, VISION


@pytest.fixture(scope="module")
def tokens() -> PromptTokens:
    """The shipped processor's prompt parts."""
    return PromptTokens(load_processor(DEFAULT_BASE))


@pytest.fixture(scope="module")
def vocabulary(tokens) -> CompactVocabulary:
    """The compact vocabulary."""
    return CompactVocabulary(tokens)


def test_compact_vocabulary_has_the_loss_of_the_full_softmax(vocabulary):
    generator = torch.Generator().manual_seed(0)
    embedding = nn.Embedding(len(vocabulary), 16, dtype=torch.float64)
    with torch.no_grad():
        embedding.weight.normal_(generator=generator)
    hidden = torch.randn(20, 16, generator=generator, dtype=torch.float64)
    ids = vocabulary.used[torch.randint(len(vocabulary.used), (20,), generator=generator)]
    compact = vocabulary.cross_entropy(hidden, embedding.weight, vocabulary.row[ids])
    table = vocabulary.expand(embedding)
    assert table.shape == (VOCAB_SIZE, 16)
    full = F.cross_entropy(hidden @ table.T, ids, reduction="none")
    assert torch.allclose(compact, full, rtol=1e-10)


def test_compact_vocabulary_covers_every_text(vocabulary, tokens):
    """Every token of prompts, questions, answers and captions has its own row."""
    texts = [tokens.prefix, *map(tokens.answer, answer_texts()), *map(tokens.question, (q for q, _ in qa_pairs(SCENE)))]
    texts += [tokens.tokenizer(text + tokens.tokenizer.eos_token)["input_ids"] for text in caption_texts()]
    assert {i for ids in texts for i in ids} <= set(vocabulary.used.tolist())
    assert set(captions(SCENE)) <= set(caption_texts())
    assert {answer for _, answer in qa_pairs(SCENE)} <= set(answer_texts())
    assert len(vocabulary.used) < 500


def test_paraphrases_have_the_same_answers():
    """Paraphrased questions have the answers of the course's questions, but never their wording."""
    rng = np.random.default_rng(0)
    official, sampled = dict(qa_pairs(SCENE)), [pair for _ in range(50) for pair in sample_pairs(SCENE, rng)]
    assert not official.keys() & {question for question, *_ in sampled}
    by_template = {row.template: row for row in PARAPHRASED_QUESTIONS}
    assert len(by_template) == len(PARAPHRASED_QUESTIONS) == 3 * len(QUESTIONS)
    question_types = Counter(
        row.question_type
        for row, question, _ in generate_questions(SCENE, PARAPHRASED_QUESTIONS)
        if question in {q for q, *_ in sampled}
    )
    assert set(question_types) == set(QUESTION_TYPES)
    answers = {question: answer for _, question, answer in generate_questions(SCENE, PARAPHRASED_QUESTIONS)}
    assert all(answers[question] == answer for question, answer, _ in sampled)
    assert answers["Does gnu drive to the left or right of the ego car?"] == "left"
    assert answers["Tell the place of xue relative to the ego car."] == "back and right"
    assert answers["Count the karts in front of the ego car."] == "1"


def is_frozen(name: str) -> bool:
    """Check whether a text stage's weights come from a dense stage."""
    return name.startswith("heads.") or "vision_encoder." in name or "prediction_heads." in name


def test_text_stage_loads_another_text_stage(tokens, tmp_path):
    """All weights but the frozen ones, which are the dense stage's, are loaded; a dense checkpoint is rejected."""
    torch.manual_seed(0)
    first, second = (TextStage(VISION, tokens) for _ in range(2))
    file = tmp_path / "text.pt"
    torch.save({"step": 1, "model": first.state_dict(), "optimizer": {}}, file)
    load_checkpoint(file, second)
    vision = VisionStage(VISION)
    second.load_vision(vision.vision_encoder, vision.heads)
    state, frozen = second.state_dict(), {f"model.{name}": weight for name, weight in vision.state_dict().items()}
    heads = second.model.connector.prediction_heads
    assert torch.equal(heads.grid_head.weight, vision.heads.grid_token.weight)
    for name, weight in first.state_dict().items():
        if not is_frozen(name):
            assert torch.equal(weight, state[name]), name
        elif name.startswith("model.vision_encoder."):
            assert torch.equal(frozen[name], state[name]), name
    trainable = {name for name, weight in second.named_parameters() if weight.requires_grad}
    assert trainable and not any(map(is_frozen, trainable))
    losses = second.losses(torch.zeros(1, 3, 100, 150), [SCENE], np.random.default_rng(0), whole=True)
    assert losses.keys() == {"captions", "questions", "synthetic"} and all(loss > 0 for loss in losses.values())
    torch.save({"step": 1, "model": {"vision_encoder.norm.weight": torch.zeros(1)}, "optimizer": {}}, file)
    with pytest.raises(InputError, match=r"text\.pt: not a checkpoint of this stage"):
        load_checkpoint(file, second)
