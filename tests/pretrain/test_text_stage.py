"""The text stage: compact vocabulary, wordings, initial weights."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homework.labels.questions import QUESTIONS, captions, classify_question, qa_pairs
from homework.models.loading import DEFAULT_BASE, load_processor
from homework.models.prompts import PromptTokens
from pretrain.assemble import VOCAB_SIZE
from pretrain.compact_vocab import CompactVocabulary, answer_texts, caption_texts
from pretrain.evaluate import answer_questions, evaluate_text
from pretrain.paraphrases import WORDINGS, sample_questions
from pretrain.text_stage import ReadStage, TextStage
from pretrain.trainer import Training, trained_tensors
from pretrain.vision_stages import VisionStage
from tests.pretrain.tiny_run import tiny_config
from tests.tiny_models import SCENE


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
    assert len(vocabulary.used) < 600


def test_common_tokens_have_rows(tokens, vocabulary):
    """The first tokens that the tokenizer has merged get a row each, beside those that occur."""
    more = CompactVocabulary(tokens, 3000)
    assert set(vocabulary.used.tolist()) | set(range(3000)) == set(more.used.tolist())
    for word in (" people", " look", " different"):
        assert more.row[tokens.tokenizer(word)["input_ids"]].unique().numel() == 1 < len(more) - 3000


def test_sampled_questions_have_the_answers_of_the_course(tokens):
    """Each is one of the composed wordings, with the answer to the course's question that it rewords."""
    rng, official = np.random.default_rng(0), dict(qa_pairs(SCENE))
    sampled = [pair for _ in range(30) for pair in sample_questions(SCENE, rng, {"relation": 4, "count": 2})]
    assert not official.keys() & {question for question, *_ in sampled}
    rows = {text: template for template, texts in WORDINGS.items() for text in texts}
    for question, answer, _ in sampled:
        names = [kart.name for kart in SCENE.karts if re.search(rf"\b{kart.name}\b", question)]
        template = rows[question.replace(names[0], "{kart}") if names else question]
        assert official[template.format(kart=names[0] if names else "")] == answer, question
    types = Counter(classify_question(rows[question]) for question, *_ in sampled if question in rows)
    assert types == {"ego": 30, "total": 30, "track": 30, "count": 60} and len(sampled) == 30 * 9


def is_frozen(name: str) -> bool:
    """Check whether a text stage's weights come from a dense stage."""
    return name.startswith("heads.") or "vision_encoder." in name or "prediction_heads." in name


def test_text_stage_begins_with_the_stages_before_it(tokens, frames, tmp_path):
    """Its encoder and heads are the stage `vision`'s and frozen, all else is the stage `read`'s."""
    config = tiny_config(tmp_path)
    vision, reading = VisionStage(config), ReadStage(config, tokens)
    for stage, module in (("vision", vision), ("read", reading)):
        with torch.no_grad():
            for weight in trained_tensors(module).values():
                weight.add_(0.01)
        Training(module, config.stages[stage], {}).save(tmp_path / f"{stage}.pt")
    stage = TextStage(config, tokens, frames)
    stage.load_previous(tmp_path)
    trained = trained_tensors(stage)
    assert trained and not any(map(is_frozen, trained))
    for name, weight in trained_tensors(reading).items():
        assert torch.equal(weight, trained[name]), name
    for name, weight in vision.vision_encoder.state_dict().items():
        assert torch.equal(weight, stage.model.vision_encoder.state_dict()[name]), name
    assert torch.equal(stage.model.connector.prediction_heads.grid_head.weight, vision.heads.grid_token.weight)
    batch = stage.sample(np.random.default_rng(3), as_rendered=False)
    losses = stage.train().losses(batch)
    assert losses.keys() == {"captions", "questions", "synthetic"} and all(loss > 0 for loss in losses.values())


def test_progress_is_measured_in_both_wordings(tokens, frames, tmp_path):
    """Accuracies of an untrained stage are numbers from 0 to 100."""
    stage = ReadStage(tiny_config(tmp_path), tokens).eval()
    assert {words: 0 <= value <= 100 for words, value in evaluate_text(stage, frames).items()} == {
        "course's words": True,
        "other words": True,
    }


def test_a_right_answer_has_all_its_tokens(tokens, tmp_path):
    """With a stage that answers everything with one kart's name, exactly the questions with that answer are right."""
    stage = ReadStage(tiny_config(tmp_path), tokens).eval()
    rows, rng = [row for row in QUESTIONS if row.question_type in ("ego", "track")], np.random.default_rng(0)
    batch = stage.pack([[("What kart is the ego car?", "tux", 1.0)]])
    wanted = iter([*batch["labels"].tolist()] * 2)
    table = torch.eye(len(stage.vocabulary))
    stage.model.language_model.embed_tokens = nn.Embedding.from_pretrained(table)
    # the first answer, of the same length, is right; of the second one, its last token is wrong
    asked = stage.pack([[(row.template, {"ego": "tux", "track": "abyss"}[row.question_type], 1.0) for row in rows]])
    states = table[asked["labels"]].clone()
    states[-1] = table[next(wanted)]
    stage.answer_states = lambda features, batch: states
    assert list(answer_questions(stage, torch.zeros(1, 1, 1), [SCENE], rows, rng)) == [
        (0, "ego", True),
        (0, "track", False),
    ]
