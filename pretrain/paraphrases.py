"""A grammar that composes other wordings of the course's questions, by the hundred, to pretrain the text model with.

A base trained on the course's own wording would leave nothing for LoRA to learn, and one trained on a few wordings
understands no others.
"""

import itertools
import re
from dataclasses import replace

import numpy as np

from homework.labels.paraphrases import HELD_OUT_WORDINGS
from homework.labels.questions import QUESTION_TYPES, QUESTIONS, generate_questions, sample_weight
from homework.labels.scene import Scene

from .synthetic_scenes import QAPair

# Alternatives are in parentheses. A pattern that ends in a full stop is a command, any other a question.
_IMAGE = "(image|picture|view|scene|frame)"
_QUESTION_LEADS = (
    "",
    f"In this {_IMAGE}, ",
    f"Looking at the {_IMAGE}, ",
    "(Quick question|Question|Now|So): ",
    "(Hi|Hello), ",
)
_COMMAND_LEADS = ("", "(Please|Now|Kindly) ", f"Look at the {_IMAGE} and ", f"For this {_IMAGE}, ")
_EGO = "ego (car|kart|vehicle)"
_FIND = "(State the number of|Report the number of|Work out the number of|Count)"
_REST = f"(relative to|compared to|with respect to|as seen from|in relation to) the {_EGO}"
_PLACES = {
    "to the left of": "(to the left of|left of|on the left side of|on the left of)",
    "to the right of": "(to the right of|right of|on the right side of|on the right of)",
    "in front of": "(in front of|ahead of|further ahead than|before)",
    "behind": "(behind|in back of|further back than)",
}
_COUNT_PATTERNS = (
    "How many (karts|other karts|racers|opponents) (are|drive|can be seen|are located|are found|race) {place} the "
    + _EGO
    + "?",
    "What is the (number|count) of (karts|other karts|racers) {place} the " + _EGO + "?",
    _FIND + " the (karts|other karts|racers) {place} the " + _EGO + ".",
    "(Say|Determine|Find out) how many (karts|racers|opponents) (are|drive|can be seen) {place} the " + _EGO + ".",
)
_PATTERNS = {
    "What kart is the ego car?": (
        f"(Which|What) (kart|racer|character) is the {_EGO}?",
        f"(Which|What) (kart|racer|character) (does the camera follow as|do we call) the {_EGO}?",
        f"What is the name of the {_EGO}?",
        f"(Name|Tell the name of|State the name of|Report the name of) the {_EGO}.",
        f"(Say|Determine|Find out) (which|what) (kart|racer|character) is the {_EGO}.",
        f"Who is (driving|in) the {_EGO}?",
    ),
    "How many karts are there in the scenario?": (
        f"How many (karts|racers) (are there|can be seen|are|appear|can you see) in the {_IMAGE}?",
        "How many (karts|racers) (can be seen|can you see|appear) (altogether|overall|in all)?",
        f"What is the (number|total number|count) of (karts|racers) in the {_IMAGE}?",
        f"{_FIND} all the (karts|racers) in the {_IMAGE}.",
        "(Say|Determine|Find out) how many (karts|racers) (there are altogether|can be seen|are in sight).",
        "Counting the ego car too, how many (karts|racers) (can be seen|are in sight)?",
    ),
    "What track is this?": (
        "(Which|What) (track|race track|course|circuit) (is this|is it|do we see|are we on|is the race on)?",
        "What is the name of (this|the) (track|race track|course|circuit)?",
        "(Name|Tell the name of|State the name of|Report the name of) (this|the) (track|race track|course|circuit).",
        "(Say|Determine|Find out) (which|what) (track|race track|course|circuit) (this is|is shown|we are on).",
        "(Which|What) (track|race track|course|circuit) (are the karts|are they) (driving|racing) on?",
    ),
    "Is {kart} to the left or right of the ego car?": (
        f"(Is {{kart}}|Does {{kart}} drive) (to|on) the (left or right|right or left) of the {_EGO}?",
        f"Left or right of the {_EGO}: (which side is {{kart}} on|where is {{kart}}|where does {{kart}} drive)?",
        f"On which side of the {_EGO} (is {{kart}}|does {{kart}} drive), (left or right|right or left)?",
        f"(Say|Determine|Find out|State) whether {{kart}} is (left or right|to the left or the right) of the {_EGO}.",
        f"Is {{kart}} (left or right|on the left or on the right|to the left or to the right), {_REST}?",
    ),
    "Is {kart} in front of or behind the ego car?": (
        f"(Is {{kart}}|Does {{kart}} drive) (in front of or behind|ahead of or in back of) the {_EGO}?",
        f"In front of or behind the {_EGO}: (where is {{kart}}|where does {{kart}} drive|where do you see {{kart}})?",
        f"On which end of the {_EGO} (is {{kart}}|does {{kart}} drive), (front or back|back or front)?",
        f"(Say|Determine|Find out|State) whether {{kart}} is (in front of or behind|ahead of or behind) the {_EGO}.",
        f"Is {{kart}} (ahead or behind|in front or in back|in front or at the back), {_REST}?",
    ),
    "Where is {kart} relative to the ego car?": (
        f"Where (is {{kart}}|does {{kart}} drive|can you see {{kart}}) {_REST}?",
        f"(Say|Determine|Find out|State|Tell) where {{kart}} is {_REST}.",
        f"(Tell|State|Report) the (place|location|position) of {{kart}} {_REST}.",
        "Front or back, and left or right: (where is {kart}|where does {kart} drive|where do you see {kart})?",
        f"What is the (place|location) of {{kart}} {_REST}?",
        f"In (what|which) direction is {{kart}} {_REST}?",
    ),
    **{
        f"How many karts are {place} the ego car?": tuple(p.replace("{place}", words) for p in _COUNT_PATTERNS)
        for place, words in _PLACES.items()
    },
}


def expand(pattern: str) -> list[str]:
    """Return all texts of a pattern: `(Which|What) kart` stands for `Which kart` and `What kart`."""
    parts = re.split(r"\(([^)]*)\)", pattern)  # every other one holds alternatives
    return list(
        map("".join, itertools.product(*(part.split("|") if i % 2 else [part] for i, part in enumerate(parts))))
    )


def compose(template: str) -> list[str]:
    """Return all wordings of one of the course's questions, but its own and those that are held out."""
    wordings = {}
    for pattern in _PATTERNS[template]:
        leads = itertools.chain(*map(expand, _COMMAND_LEADS if pattern.endswith(".") else _QUESTION_LEADS))
        for lead, text in itertools.product(list(leads), expand(pattern)):
            lower = lead and not lead.endswith(": ")
            wordings[lead + (text[0].lower() + text[1:] if lower else text)] = None
    return [text for text in wordings if text != template and text not in HELD_OUT_WORDINGS.get(template, ())]


WORDINGS = {template: compose(template) for template in _PATTERNS}


def sample_questions(scene: Scene, rng: np.random.Generator, per_type: dict[str, int]) -> list[QAPair]:
    """Sample a few of a scene's questions of each type, each in one of its wordings: (question, answer, weight).

    Args:
        per_type: how many questions of a type; 1 of a type that is not among them.
    """
    rows = [
        replace(row, template=texts[rng.integers(len(texts))])
        for row in QUESTIONS
        if (texts := WORDINGS.get(row.template))
    ]
    pairs_by_type = {kind: [] for kind in QUESTION_TYPES}
    for row, question, answer in generate_questions(scene, rows):
        pairs_by_type[row.question_type].append((question, answer, sample_weight(row.question_type, answer)))
    orders = {kind: rng.permutation(len(pairs)) for kind, pairs in pairs_by_type.items()}
    return [pairs_by_type[kind][i] for kind, order in orders.items() for i in order[: per_type.get(kind, 1)]]
