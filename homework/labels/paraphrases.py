"""Other wordings of the course's questions, ten each, to evaluate on: no training uses them."""

from dataclasses import replace

from ..utils.errors import InputError
from .questions import QUESTIONS, classify_question, split_question, template_pattern

_PLACES = {
    "to the left of": ("left of", "on the left of"),
    "to the right of": ("right of", "on the right of"),
    "in front of": ("ahead of", "in front of"),
    "behind": ("behind", "behind"),
}
_COUNT_WORDINGS = (
    ("How many karts are there {} the ego car?", 0),
    ("How many other karts do you see {} the ego car?", 1),
    ("Give the number of karts {} the ego car.", 0),
    ("Tell me how many karts are {} the ego car.", 1),
    ("Number of karts {} the ego car?", 0),
    ("What number of karts is {} the ego car?", 1),
    ("How many karts does one find {} the ego car?", 0),
    ("Can you count the karts {} the ego car?", 1),
    ("How many karts are driving {} the ego car?", 0),
    ("I want to know how many karts are {} the ego car.", 1),
)
HELD_OUT_WORDINGS: dict[str, tuple[str, ...]] = {
    "What kart is the ego car?": (
        "Which of the karts is the ego car?",
        "What is the ego car called?",
        "Identify the ego car.",
        "What's the name of the ego kart?",
        "The ego car is which kart?",
        "Please name the kart that is the ego car.",
        "Can you say which kart the ego car is?",
        "Who drives the ego car?",
        "Give the ego car's name.",
        "I want to know which kart the ego car is.",
    ),
    "How many karts are there in the scenario?": (
        "Give the total number of karts.",
        "How many karts are visible?",
        "How many karts do you see in total?",
        "What is the total kart count?",
        "In total, how many karts are in this picture?",
        "Number of karts in the image?",
        "How many karts does the scene contain?",
        "Please count all karts.",
        "Tell me how many karts there are.",
        "Including the ego car, how many karts are there?",
    ),
    "What track is this?": (
        "On which track does this race take place?",
        "What is the track called?",
        "Identify the track.",
        "Which track is shown?",
        "On what track are the karts racing?",
        "Give the track's name.",
        "Tell me the name of the track.",
        "The race is on which track?",
        "Can you name this track?",
        "What's this track?",
    ),
    "Is {kart} to the left or right of the ego car?": (
        "Is {kart} left or right of the ego car?",
        "Is {kart} on the left or the right of the ego car?",
        "Relative to the ego car, is {kart} left or right?",
        "Which side of the ego car is {kart} on, the left or the right?",
        "{kart}: left or right of the ego car?",
        "Does {kart} appear left or right of the ego car?",
        "Would you say {kart} is to the left or to the right of the ego car?",
        "Compared with the ego car, is {kart} further left or further right?",
        "Tell me whether {kart} is to the left or right of the ego car.",
        "To which side of the ego car is {kart}, right or left?",
    ),
    "Is {kart} in front of or behind the ego car?": (
        "Is {kart} ahead of or behind the ego car?",
        "Is {kart} in front of the ego car or behind it?",
        "Relative to the ego car, is {kart} in front or behind?",
        "{kart}: in front of or behind the ego car?",
        "Does {kart} appear in front of or behind the ego car?",
        "Tell me whether {kart} is in front of or behind the ego car.",
        "Would you say {kart} is ahead of the ego car or behind it?",
        "Compared with the ego car, is {kart} further ahead or further back?",
        "Is {kart} behind or in front of the ego car?",
        "Which is true: is {kart} in front of the ego car, or is it behind?",
    ),
    "Where is {kart} relative to the ego car?": (
        "Where is {kart} compared with the ego car?",
        "Describe where {kart} is relative to the ego car.",
        "What is the position of {kart} relative to the ego car?",
        "Relative to the ego car, where is {kart}?",
        "Where can {kart} be found relative to the ego car?",
        "In which direction from the ego car is {kart}?",
        "Tell me where {kart} is, seen from the ego car.",
        "Give the position of {kart} with respect to the ego car.",
        "How is {kart} placed relative to the ego car?",
        "From the ego car, where is {kart}?",
    ),
    **{
        f"How many karts are {place} the ego car?": tuple(text.format(others[i]) for text, i in _COUNT_WORDINGS)
        for place, others in _PLACES.items()
    },
}
# With these, `generate_questions(scene, HELD_OUT_QUESTIONS)` asks a scene's questions in all ten wordings.
HELD_OUT_QUESTIONS = tuple(
    replace(row, template=text) for row in QUESTIONS for text in HELD_OUT_WORDINGS.get(row.template, ())
)


def is_known_question(question: str) -> bool:
    """Return whether a question is one of the course's, in its words or in one of the other wordings."""
    wordings = (wording for wordings in HELD_OUT_WORDINGS.values() for wording in wordings)
    return classify_question(question) != "other" or any(
        template_pattern(wording).fullmatch(question) for wording in wordings
    )


def rephrase(question: str) -> list[tuple[str, str]]:
    """Return the ten (wording, question in it) of one of the course's questions.

    Raises:
        InputError: it is none of these.
    """
    template, kart = split_question(question)
    if template not in HELD_OUT_WORDINGS:
        raise InputError(repr(question), "has no other wordings", "add them to HELD_OUT_WORDINGS, or leave it out")
    return [(wording, wording.replace("{kart}", kart)) for wording in HELD_OUT_WORDINGS[template]]
