"""Paraphrases of the course's questions, to pretrain the base with.

A base trained on the course's own wording would leave nothing for LoRA to learn.
"""

from dataclasses import replace

from homework.labels.questions import QUESTIONS

_COUNT_PARAPHRASES = (
    "Count the karts {place} the ego car.",
    "Looking {place} the ego car, how many karts can be seen?",
    "What is the number of karts {place} the ego car?",
)
_PARAPHRASES = {
    "What kart is the ego car?": ("Which kart is the ego car?", "Name the ego car.", "Tell the name of the ego car."),
    "How many karts are there in the scenario?": (
        "Count the karts in the scenario.",
        "How many karts can be seen?",
        "What is the number of karts in the scenario?",
    ),
    "What track is this?": ("Which track is this?", "Name the track.", "What is the name of this track?"),
    "Is {kart} to the left or right of the ego car?": (
        "Left or right of the ego car: which side is {kart} on?",
        "Does {kart} drive to the left or right of the ego car?",
        "On which side of the ego car is {kart}, left or right?",
    ),
    "Is {kart} in front of or behind the ego car?": (
        "In front of or behind the ego car: where is {kart}?",
        "Does {kart} drive in front of or behind the ego car?",
        "On which end of the ego car is {kart}, front or back?",
    ),
    "Where is {kart} relative to the ego car?": (
        "Where does {kart} drive relative to the ego car?",
        "Tell the place of {kart} relative to the ego car.",
        "Front or back, and left or right: where is {kart}?",
    ),
    **{
        f"How many karts are {place} the ego car?": tuple(text.format(place=place) for text in _COUNT_PARAPHRASES)
        for place in ("to the left of", "to the right of", "in front of", "behind")
    },
}

PARAPHRASED_QUESTIONS = tuple(
    replace(row, template=text) for row in QUESTIONS for text in _PARAPHRASES.get(row.template, ())
)
