"""Weights in a fresh clone: they load, are small enough, and answer in the contract's words."""

import re
from pathlib import Path

import pytest
from PIL import Image

import bundle
import homework
from homework.clip import predict
from homework.labels.questions import QUESTION_TYPES, QUESTIONS, classify_question
from homework.models.loading import DEFAULT_BASE, load_processor
from pretrain.targets import KARTS, TRACKS

FORMS = {
    "ego": "|".join(KARTS),
    "track": "|".join(TRACKS),
    "total": r"\d+",
    "count": r"\d+",
    "relation": "left|right|front|back|(front|back) and (left|right)",
}


@pytest.fixture
def view(tmp_path) -> str:
    """Draw a grey road under a blue sky, with a red box in the middle."""
    image = Image.new("RGB", (150, 100), (90, 140, 220))
    image.paste((110, 110, 110), (0, 50, 150, 100))
    image.paste((200, 30, 30), (62, 50, 88, 90))
    image.save(tmp_path / "view.jpg")
    return str(tmp_path / "view.jpg")


def test_shipped_vlm_answers_every_question_type_in_its_form(view):
    """Each question type gets an answer of its form: a number, a side, a kart's or a track's name."""
    vlm = homework.load_vlm()
    questions = [row.template.format(kart="tux") for row in QUESTIONS]
    answers = vlm.answer([view] * len(questions), questions)
    assert {classify_question(question) for question in questions} == set(QUESTION_TYPES)
    for question, answer in zip(questions, answers, strict=True):
        assert re.fullmatch(FORMS[classify_question(question)], answer), (question, answer)
    assert sum(parameter.numel() for parameter in vlm.model.parameters()) <= 300_000_000


def test_shipped_clip_picks_the_plausible_caption(view):
    """CLIP ranks the caption of one kart above those of 8 and of 9 karts."""
    clip = homework.load_clip()
    row = {"image_path": view, "candidates": [f"There are {n} karts in the scene." for n in (9, 1, 8)]}
    assert predict(clip, load_processor(DEFAULT_BASE).tokenizer, [row]) == [1]
    assert sum(parameter.numel() for parameter in clip.model.parameters()) <= 300_000_000


def test_shipped_submission_can_be_handed_in(tmp_path):
    """The whole submission fits into a bundle."""
    bundle.bundle(Path(homework.__path__[0]), tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").stat().st_size < 50_000_000
