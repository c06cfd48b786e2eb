"""Other words for the course's questions: composed ones to train on, and held-out ones to evaluate on."""

import re

import pytest

from homework.labels.paraphrases import HELD_OUT_QUESTIONS, HELD_OUT_WORDINGS
from homework.labels.questions import QUESTIONS, classify_question, generate_questions, qa_pairs
from pretrain.paraphrases import WORDINGS
from tests.tiny_models import SCENE

TEMPLATES = [row.template for row in QUESTIONS]
CUES = {
    "left": r"\bleft\b",
    "right": r"\bright\b",
    "front": r"\b(front|ahead|before)\b",
    "back": r"\b(behind|back)\b",
}


def recognise(text: str) -> str | None:
    """Tell from its words which of the course's questions a text asks; None if they fit none, or several."""
    text = text.lower()
    cues = {name for name, pattern in CUES.items() if re.search(pattern, text)}
    if "{kart}" in text:
        if cues == {"left", "right"}:
            return "Is {kart} to the left or right of the ego car?"
        if cues == {"front", "back"}:
            return "Is {kart} in front of or behind the ego car?"
        is_where = re.search(r"\b(where|place|placed|location|position|direction)\b", text)
        return "Where is {kart} relative to the ego car?" if is_where and cues in (set(), set(CUES)) else None
    if re.search(r"\b(how many|number|count)\b", text):
        places = {"left": "to the left of", "right": "to the right of", "front": "in front of", "back": "behind"}
        if len(cues) == 1:
            return f"How many karts are {places[cues.pop()]} the ego car?"
        return None if cues else "How many karts are there in the scenario?"
    is_track = bool(re.search(r"\b(track|course|circuit)\b", text))
    is_ego = bool(re.search(r"\bego (car|kart|vehicle)\b", text))
    return None if cues or is_track == is_ego else "What track is this?" if is_track else "What kart is the ego car?"


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("wordings", [WORDINGS, HELD_OUT_WORDINGS], ids=["composed", "held out"])
def test_each_wording_asks_its_question_alone(wordings, template):
    """Its words tell its question from all others, and it is a sentence: its first letter, spaces and end."""
    texts = wordings[template]
    assert len(set(texts)) == len(texts) and len(texts) >= (10 if wordings is HELD_OUT_WORDINGS else 100)
    for text in texts:
        assert recognise(text) == template, text
        assert text.count("{kart}") == template.count("{kart}") and not re.search(r"[()|\[\]]|  | [,.:?]", text), text
        assert re.fullmatch(r"([A-Z]|\{kart\}).*[.?]", text) and len(re.findall(r"[.?]", text)) == 1, text
        words = text.lower().split()
        assert not any(one == other for one, other in zip(words, words[1:], strict=False)), text
        assert not re.search(r"\b(a [aeiou]|is (karts|racers)|does (karts|you)|how many [a-z]+ is)\b", text), text


def test_no_training_uses_a_held_out_wording():
    """They are disjoint, whatever the case of letters, and neither has the course's own words."""
    held_out, composed = (
        {text.lower() for texts in one.values() for text in texts} for one in (HELD_OUT_WORDINGS, WORDINGS)
    )
    assert len(held_out) == 100 and not held_out & composed
    assert not (held_out | composed) & {template.lower() for template in TEMPLATES}
    assert {classify_question(text.format(kart="tux")) for text in held_out} == {"other"}


def test_held_out_questions_have_the_answers_of_the_course():
    """Each of the scene's questions is asked in ten wordings."""
    official = dict(qa_pairs(SCENE))
    asked = generate_questions(SCENE, HELD_OUT_QUESTIONS)
    assert len(asked) == 10 * len(official)
    template_of = {text: template for template, texts in HELD_OUT_WORDINGS.items() for text in texts}
    for row, question, answer in asked:
        names = [kart.name for kart in SCENE.karts if re.search(rf"\b{kart.name}\b", question)] or [""]
        assert official[template_of[row.template].format(kart=names[0])] == answer
