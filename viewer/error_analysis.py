"""Where a VLM fails, and whether its answers agree: `python -m viewer.error_analysis homework/weights/vlm --split valid`.

Every question is asked of every view of a split. Tables give percent right by the strict rule over the questions that
the official set would ask (no count of 0) and how many those are; the agreement is over all questions.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from homework.base_vlm import BaseVLM
from homework.data import is_exact_match
from homework.labels.eval_sets import split_scenes
from homework.labels.questions import QUESTION_TYPES, classify_question, in_official_eval, qa_pairs
from homework.labels.rows import DATA_DIR, add_image_paths
from homework.labels.scene import Kart, Scene
from homework.utils.cli import run
from homework.utils.errors import InputError
from homework.utils.io import write_json

logger = logging.getLogger(__name__)

SIDES = (5, 7, 10, 15, 25)  # pixels of 150x100: where the classes of box sizes begin
MOST_KARTS = 5  # views with as many or more are one class
COUNTS = {side: f"How many karts are {side} the ego car?" for side in ("to the left of", "to the right of")}
COUNTS |= {side: f"How many karts are {side} the ego car?" for side in ("in front of", "behind")}
TOTAL = "How many karts are there in the scenario?"


@dataclass(frozen=True)
class Asked:
    """A question about a view with the model's answer."""

    scene: Scene
    question: str
    truth: str
    answer: str

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return classify_question(self.question)

    @property
    def is_right(self) -> bool:
        """By the strict rule."""
        return is_exact_match(self.answer, self.truth)

    @property
    def kart(self) -> Kart | None:
        """The kart that decides how hard the question is.

        The ego kart if that is asked for, the other one of a relation, of a number the smallest; none for the track.
        """
        if self.kind == "track":
            return None
        if self.kind == "ego":
            return self.scene.ego
        if self.kind == "relation":
            words = self.question.split()
            return next(kart for kart in self.scene.others if kart.name in words)
        return min(self.scene.karts, key=lambda kart: kart.min_side)


def ask_everything(vlm: BaseVLM, scenes: dict[str, Scene], data: Path) -> dict[str, list[Asked]]:
    """All questions of all views, by image.

    Args:
        scenes: by image, relative to `data`.
    """
    rows = [
        {"image_file": image, "question": question, "answer": truth}
        for image, scene in scenes.items()
        for question, truth in qa_pairs(scene)
    ]
    rows = add_image_paths(rows, data)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    asked = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        image = row["image_file"]
        asked[image].append(Asked(scenes[image], row["question"], row["answer"], answer))
    return dict(asked)


def tally(asked: Iterable[Asked], group: Callable[[Asked], str | None]) -> tuple[Counter, Counter]:
    """(right, asked) questions by (group, kind); those that give no group are left out."""
    right, number = Counter(), Counter()
    for one in asked:
        name = group(one)
        if name is not None:
            number[name, one.kind] += 1
            right[name, one.kind] += one.is_right
    return right, number


def table(title: str, asked: Iterable[Asked], group: Callable[[Asked], str | None]) -> list[str]:
    """Lines: percent right and number of questions by group (those that give None left out) and kind."""
    right, number = tally(asked, group)
    names = sorted({name for name, _ in number})
    kinds = [kind for kind in QUESTION_TYPES if any((name, kind) in number for name in names)]
    lines = [f"{title:24}" + "".join(f"{kind:>16}" for kind in kinds)]
    for name in names:
        cells = [_percent(right[name, kind], number[name, kind]) for kind in kinds]
        lines.append(f"  {name:22}" + "".join(f"{cell:>16}" for cell in cells))
    return [*lines, ""]


def _percent(right: int, number: int) -> str:
    return f"{100 * right / number:.1f} of {number:,}" if number else "-"


def by_number(one: Asked) -> str:
    """How many karts count in the view."""
    number = len(one.scene.karts)
    return f"{number}" if number < MOST_KARTS else f"{MOST_KARTS} or more"


def by_side(one: Asked) -> str | None:
    """How small the kart is that decides."""
    if one.kart is None:
        return None
    at = max(i for i, side in enumerate(SIDES) if one.kart.min_side >= side)
    return f"{SIDES[at]:2} to {SIDES[at + 1] - 1}" if at + 1 < len(SIDES) else f"{SIDES[at]} or more"


def by_pair(pairs: Counter) -> Callable[[Asked], str | None]:
    """Whether train has views of this ego kart on this track.

    Args:
        pairs: how many it has of each (kart, track).
    """

    def group(one: Asked) -> str | None:
        if one.scene.ego is None:
            return None
        return "in train" if pairs[one.scene.ego.name, one.scene.track] else "not in train"

    return group


def said_for(asked: Iterable[Asked], kind: str) -> dict[str, Counter]:
    """True answer of a kind -> how often each answer was given for it, in lower case."""
    said = defaultdict(Counter)
    for one in asked:
        if one.kind == kind:
            said[one.truth][one.answer.strip().lower()] += 1
    return dict(said)


def confusions(asked: Iterable[Asked], kind: str, lines: int = 30) -> list[str]:
    """For each true answer of a kind, from the worst to the best: percent right, and what is said instead."""
    said = said_for(asked, kind)
    shares = {truth: answers[truth.lower()] / answers.total() for truth, answers in said.items()}
    result = [f"{kind}: true answer, right, and what is said instead"]
    for truth in sorted(shares, key=shares.get)[:lines]:
        answers = said[truth]
        wrong = [f"{answer} {number}" for answer, number in answers.most_common(4) if answer != truth.lower()]
        share = _percent(answers[truth.lower()], answers.total())
        result.append(f"  {truth:22}{share:>16}  {', '.join(wrong[:3])}".rstrip())
    return [*result, ""]


def agreement(views: Iterable[list[Asked]]) -> dict[str, tuple[int, int]]:
    """(how often, of how many) the answers to different questions on a view agree, whether right or wrong.

    The numbers of a view with a kart: left + right = front + behind = total - 1. Each "where is" answer: its halves are
    what is answered when only one of them is asked for.
    """
    held, number = Counter(), Counter()
    for view in views:
        answers = {one.question: one.answer.strip().lower() for one in view}
        checks = list(_checks(view, answers))
        for name, holds in checks:
            number[name] += 1
            held[name] += holds
        if checks:
            number["all of a view"] += 1
            held["all of a view"] += all(holds for _, holds in checks)
    return {name: (held[name], number[name]) for name in number}


def _checks(view: list[Asked], answers: dict[str, str]) -> Iterator[tuple[str, bool]]:
    if TOTAL in answers:
        left, right, front, behind = (_number(answers[question]) for question in COUNTS.values())
        others = _number(answers[TOTAL]) - 1
        yield "left + right = total - 1", left + right == others
        yield "front + behind = total - 1", front + behind == others
    for one in view:
        if one.question.startswith("Where is "):
            kart = one.kart.name
            depth = answers[f"Is {kart} in front of or behind the ego car?"]
            side = answers[f"Is {kart} to the left or right of the ego car?"]
            yield "where = its two halves", one.answer.strip().lower() == f"{depth} and {side}"


def _number(answer: str) -> float:
    """NaN, which equals nothing, for an answer that is no number."""
    return float(answer) if answer.isdecimal() else float("nan")


def trained_pairs(data: Path) -> Counter:
    """How many views of each (ego kart, track) the training split has; none, and a word of it, without that split."""
    try:
        trained = split_scenes(data, "train")
    except InputError as error:
        logger.info(f"no table by pairs: {error}")
        return Counter()
    return Counter((scene.ego.name, scene.track) for scene in trained.values() if scene.ego)


def report(checkpoint: str, /, split: str = "valid", data: str = str(DATA_DIR), output: str | None = None) -> None:
    """Ask a checkpoint everything about a split; print where it fails and how its answers agree.

    Example: python -m viewer.error_analysis homework/weights/vlm --split valid

    Args:
        checkpoint: a PEFT folder or a base.
        split: folder of the data to ask about.
        data: the data folder; its `train` says which pairs of kart and track could be learned.
        output: write the agreement and every answer into this JSON file.
    """
    data_dir = Path(data)
    scenes = split_scenes(data_dir, split)
    pairs = trained_pairs(data_dir)
    vlm = BaseVLM(checkpoint)
    vlm.show_progress = True
    views = ask_everything(vlm, scenes, data_dir)
    official = [one for view in views.values() for one in view if in_official_eval(one.kind, one.truth)]
    print(f"{checkpoint} on all of {split}: {len(official):,} questions, percent right by the strict rule\n")
    lines = table("all", official, lambda one: "")
    lines += table("karts in the view", official, by_number)
    lines += table("pixels of the kart", official, by_side)
    if pairs:
        lines += table("ego kart on the track", official, by_pair(pairs))
    for kind in ("ego", "total", "count", "track"):
        lines += confusions(official, kind)
    counts = [one for view in views.values() for one in view if one.kind == "count"]
    lines += table("counts, 0 too", counts, lambda one: "0" if one.truth == "0" else "others")
    print("\n".join(lines))
    agreed = agreement(views.values())
    print("answers that agree")
    for name, (held, number) in agreed.items():
        print(f"  {name:32}{_percent(held, number):>16}")
    if output:
        samples = [
            {"image_file": image, "question": one.question, "model_answer": one.answer, "correct_answer": one.truth}
            for image, view in views.items()
            for one in view
        ]
        write_json(output, {"agreement": agreed, "samples": samples})


if __name__ == "__main__":
    run(report)
