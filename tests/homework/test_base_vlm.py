"""BaseVLM: `answer` and `generate` against a plain greedy decoding, and bad input."""

import random

import pytest
import torch

from homework.base_vlm import BaseVLM
from homework.utils.errors import InputError
from tests.tiny_models import reference_answers

QUESTIONS = [
    "What kart is the ego car?",
    "How many karts are there in the scenario?",
    "What track is this?",
    "Is sara_the_wizard in front of or behind the ego car?",
    "How many karts are behind the ego car?",
]


def ids_instead_of_text(vlm: BaseVLM, end: int | None = None) -> BaseVLM:
    """Make `vlm` answer with token ids up to the end token, to compare them one by one."""
    end = vlm.tokens.end if end is None else end
    vlm.tokens.end = end
    vlm.tokens.decode = lambda ids: tuple(ids[: ids.index(end) + 1] if end in ids else ids)
    return vlm


def all_questions(views) -> tuple[list, list]:
    """Every question on every image, mixed."""
    asked = [(view, question) for view in views for question in QUESTIONS]
    random.Random(0).shuffle(asked)
    return [view for view, _ in asked], [question for _, question in asked]


@pytest.mark.parametrize("case", ["mixed", "one image", "one question"])
def test_answers_are_those_of_greedy_decoding(vlm, views, case):
    """Token for token, in the order of the questions; `generate` gives the same."""
    images, questions = all_questions(views)
    if case == "one image":
        images, questions = [views[2]] * len(QUESTIONS), QUESTIONS
    elif case == "one question":
        images, questions = images[:1], questions[:1]
    ids_instead_of_text(vlm)
    answers = vlm.answer(images, questions)
    assert answers == reference_answers(vlm, images, questions)
    assert [texts[0] for texts in vlm.generate(images, questions)] == answers
    # of use only if image and question both decide the answer
    assert len(set(answers)) == len(answers)


def test_answers_of_different_lengths(vlm, views):
    """An answer that ends early is the same beside ones that go on."""
    images, questions = all_questions(views)
    ids_instead_of_text(vlm)
    rows = vlm.answer(images, questions)
    # as end token the one that is found in most answers, but not in all
    tokens = {token for row in rows for token in row}
    end = max(tokens, key=lambda t: sum(t in row for row in rows) * (not all(t in row for row in rows)))
    ids_instead_of_text(vlm, end)
    answers = vlm.answer(images, questions)
    assert len({len(answer) for answer in answers}) > 2
    assert answers == reference_answers(vlm, images, questions)


def test_chunks_of_many_images(vlm, views, monkeypatch):
    """More images and questions than are taken at once give the same answers."""
    images, questions = all_questions(views)
    whole = vlm.answer(images, questions)
    monkeypatch.setattr("homework.base_vlm.MAX_IMAGE_BATCH_SIZE", 1)
    assert vlm.answer(images, questions) == whole
    assert vlm.answer([str(path) for path in images], questions) == whole


def test_white_space_around_a_question(vlm, views):
    """A question with outer white space is the same question, for `answer` and `generate`."""
    answers = vlm.answer(views[:1] * 2, [QUESTIONS[0], f"  {QUESTIONS[0]}\n"])
    assert answers[0] == answers[1] == reference_answers(vlm, views[:1], [f"\n{QUESTIONS[0]} "])[0]


def test_generate_gives_several_texts(vlm, views):
    """`num_return_sequences` texts a question, sampled where the temperature is above 0."""
    torch.manual_seed(0)
    texts = vlm.generate(views[:2], QUESTIONS[:2], max_new_tokens=4, num_return_sequences=3, temperature=5.0)
    assert [len(row) for row in texts] == [3, 3]
    assert len(set(texts[0])) > 1


def test_nothing_asked(vlm):
    """No question, no answer."""
    assert vlm.answer([], []) == []


def test_model_runs_in_float32_on_a_cpu(vlm):
    """The dtype follows the device: float32 on a CPU."""
    if vlm.device.type == "cpu":
        assert {p.dtype for p in vlm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("damage", ["truncated", "missing", "no image"])
@pytest.mark.parametrize("method", ["answer", "generate"])
def test_bad_image_is_named(vlm, views, tmp_path, damage, method):
    """A bad image: one line that names the file."""
    bad = tmp_path / "bad.png"
    if damage != "missing":
        bad.write_bytes(views[0].read_bytes()[:60] if damage == "truncated" else b"not a picture")
    with pytest.raises(InputError) as info:
        getattr(vlm, method)([views[0], bad], QUESTIONS[:2])
    assert str(bad) in str(info.value) and "\n" not in str(info.value)


def test_lengths_that_differ(vlm, views):
    """Images and questions have to be as many."""
    with pytest.raises(ValueError, match="2 images but 1 questions"):
        vlm.answer(views[:2], QUESTIONS[:1])
