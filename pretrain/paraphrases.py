"""The homework's questions in other words, for the base to learn from.

A base that had been trained on the course's own words would leave nothing for LoRA to do, and say nothing of how well
a model takes up a new task: so it learns what the questions ask for, but not how they ask.
"""

from dataclasses import replace

from homework.labels.questions import QUESTIONS

_COUNTED = (
    "Count the karts {place} the ego car.",
    "Looking {place} the ego car, how many karts can be seen?",
    "What is the number of karts {place} the ego car?",
)
_OTHER_WORDS = {
    "What kart is the ego car?": (
        "Which kart is the ego car?",
        "Name the ego car.",
        "Tell the name of the ego car.",
    ),
    "How many karts are there in the scenario?": (
        "Count the karts in the scenario.",
        "How many karts can be seen?",
        "What is the number of karts in the scenario?",
    ),
    "What track is this?": (
        "Which track is this?",
        "Name the track.",
        "What is the name of this track?",
    ),
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
        f"How many karts are {place} the ego car?": tuple(words.format(place=place) for words in _COUNTED)
        for place in ("to the left of", "to the right of", "in front of", "behind")
    },
}

REWORDED = tuple(replace(row, template=words) for row in QUESTIONS for words in _OTHER_WORDS.get(row.template, ()))
