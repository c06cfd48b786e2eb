"""What a fresh clone holds: weights that load, are small enough, and answer in the contract's words."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import bundle
import homework
from homework.base_vlm import BaseVLM
from homework.clip import predict
from homework.labels.questions import QUESTION_TYPES, QUESTIONS, classify_question
from homework.models.images import load_views, normalise
from homework.models.loading import DEFAULT_BASE, load_base, load_processor
from pretrain import SAVED_STAGE
from pretrain.checkpoints import load_vision_stage
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
    """A made picture: a grey road under a blue sky, a red box in the middle."""
    image = Image.new("RGB", (150, 100), (90, 140, 220))
    image.paste((110, 110, 110), (0, 50, 150, 100))
    image.paste((200, 30, 30), (62, 50, 88, 90))
    image.save(tmp_path / "view.jpg")
    return str(tmp_path / "view.jpg")


def test_shipped_vlm_answers_every_question_in_its_words(view):
    """Each kind of question gets an answer of the form that its truth has."""
    vlm = homework.load_vlm()
    questions = [row.template.format(kart="tux") for row in QUESTIONS]
    answers = vlm.answer([view] * len(questions), questions)
    assert {classify_question(question) for question in questions} == set(QUESTION_TYPES)
    for question, answer in zip(questions, answers, strict=True):
        assert re.fullmatch(FORMS[classify_question(question)], answer), (question, answer)
    assert sum(parameter.numel() for parameter in vlm.model.parameters()) <= 300_000_000
    assert BaseVLM.from_parts(*vlm.stock).answer([view] * len(questions), questions) == answers


def test_shipped_clip_chooses(view):
    """CLIP tells a kart that can be there from 9 of them."""
    clip = homework.load_clip()
    row = {"image_path": view, "candidates": [f"There are {n} karts in the scene." for n in (9, 1, 8)]}
    assert predict(clip, load_processor(DEFAULT_BASE).tokenizer, [row]) == [1]
    assert sum(parameter.numel() for parameter in clip.model.parameters()) <= 300_000_000


def test_shipped_submission_can_be_handed_in(tmp_path):
    """The whole submission fits into a bundle."""
    bundle.bundle(Path(homework.__path__[0]), tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").stat().st_size < 50_000_000


@torch.no_grad()
def test_saved_stage_is_the_shipped_tower(view):
    """Training can go on from the saved stage: its tower sees what the shipped base's sees."""
    saved = load_vision_stage(SAVED_STAGE).tower.eval()
    shipped = load_base()[0].model.vision_model
    pixels = normalise(load_views([view]))
    first, second = (tower(pixels).last_hidden_state for tower in (saved, shipped))
    assert torch.allclose(first, second, atol=0.05) and first.std() > 0.5
