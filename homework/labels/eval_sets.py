"""Evaluation sets in the official shape and mix, from any split; and the label rule against the official ones."""

import logging
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

from ..utils.cli import run
from ..utils.errors import InputError, check_min
from ..utils.io import write_json
from ..utils.progress import progress_bar
from .frame_info import read_frame_info, read_scenes
from .questions import (
    CAPTIONS,
    QUESTION_TYPES,
    captions,
    classify_caption,
    classify_question,
    in_official_eval,
    qa_pairs,
)
from .rows import DATA_DIR, MultiChoiceQADataset, VQADataset, image_file, info_files, parse_image_file, split_folder
from .scene import Scene, build_scene

logger = logging.getLogger(__name__)

QA_FILE, MC_FILE = "balanced_qa_pairs.json", "all_mc_qas.json"
NUM_DISTRACTORS = 4

# How often the official 200 questions have a true caption of a kind, and beside it distractors of each kind.
MC_MIX = {
    "total": (58, {"track": 107, "ego": 78, "total": 44, "relation": 3}),
    "track": (55, {"track": 90, "ego": 90, "total": 37, "relation": 3}),
    "ego": (45, {"track": 79, "ego": 64, "total": 30, "relation": 7}),
    "relation": (42, {"track": 69, "ego": 53, "total": 19, "relation": 27}),
}
TOTALS = [str(n) for n in range(10)]  # the numbers in the official distractors to `total`

Scenes = dict[str, Scene]


def split_scenes(data_dir: str | Path, split: str) -> Scenes:
    """Every view of a split: image file -> scene.

    Raises:
        InputError: no such split, one without a view, or a broken frame.
    """
    folder = split_folder(data_dir, split)
    found = {
        image_file(path, view): view_scene
        for path in progress_bar(info_files(folder), desc="reading frames", unit="frame", delay=1)
        for view, view_scene in read_scenes(path)
    }
    if not found:
        raise InputError(folder, "its frames have no views", "take another split")
    return found


def _shares(n: int, weights: dict[str, int]) -> dict[str, int]:
    """`n` split in proportion to the weights, in whole numbers (largest remainders first)."""
    exact = {key: Fraction(n * weight, sum(weights.values())) for key, weight in weights.items()}
    shares = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: shares[key] - exact[key])
    for key in by_remainder[: n - sum(shares.values())]:
        shares[key] += 1
    return shares


def _draw(
    scenes_by_image: Scenes, shares: dict[str, int], texts: Callable[[Scene, str], list], rng: random.Random
) -> dict[str, list[tuple[str, object]]]:
    """For each kind as many (image file, text) as its share, no image twice.

    Args:
        shares: kind -> how many. The kinds that fewest views can serve come first.
        texts: what of a kind can be taken from a scene.

    Raises:
        InputError: too few views.
    """
    images = sorted(scenes_by_image)
    drawn = {}
    for kind, share in shares.items():
        rng.shuffle(images)  # again for each kind: the last one took what it liked from the front
        able = (image for image in images if texts(scenes_by_image[image], kind))
        taken = [image for image, _ in zip(able, range(share), strict=False)]
        if len(taken) < share:
            split = Path(next(iter(scenes_by_image), "the split/none")).parent
            problem = f"{len(taken)} views left for {share} questions of the kind `{kind}`, one a view"
            raise InputError(split, problem, "ask for fewer questions or take a larger split")
        drawn[kind] = [(image, rng.choice(texts(scenes_by_image[image], kind))) for image in taken]
        gone = set(taken)
        images = [image for image in images if image not in gone]
    return drawn


def _official_pairs(view: Scene, kind: str) -> list[tuple[str, str]]:
    """The pairs of a kind that the official set would ask."""
    pairs = [(question, answer) for question, answer in qa_pairs(view) if classify_question(question) == kind]
    return [(question, answer) for question, answer in pairs if in_official_eval(kind, answer)]


def balanced_pairs(scenes_by_image: Scenes, n: int, seed: int) -> list[dict]:
    """`n` question-answer pairs, as many of each kind, no two on one image, no count of 0.

    Raises:
        InputError: the scenes can't provide as many.
    """
    # the course's other kinds can do with any view, relation and count need one with two karts
    order = ("count", "relation", "total", "ego", "track")
    order = (*(kind for kind in QUESTION_TYPES if kind not in order), *order)  # of a new kind nothing is known
    shares = _shares(n, dict.fromkeys(QUESTION_TYPES, 1))
    drawn = _draw(scenes_by_image, {kind: shares[kind] for kind in order}, _official_pairs, random.Random(seed))
    return [
        {"question": question, "answer": answer, "image_file": image}
        for kind in QUESTION_TYPES
        for image, (question, answer) in drawn[kind]
    ]


def _captions_of(kind: str, values: Iterable[str]) -> list[str]:
    """Every caption of a kind that can be made of the values, true or not."""
    return [row.template.format(value) for row in CAPTIONS if row.caption_type == kind for value in values]


def _distractors(kinds: list[str], values: dict[str, list[str]], view: Scene, rng: random.Random) -> list[str]:
    """One caption a kind, all different, none of them true of the scene.

    Args:
        values: kind -> what its captions are filled with. As in the official set, those of the kind
            `relation` are about a kart of the scene, where it has one.
    """
    here = {"relation": [kart.name for kart in view.karts]}
    used = set(captions(view))
    drawn = []
    for kind in kinds:
        free = [text for text in _captions_of(kind, here.get(kind) or values[kind]) if text not in used]
        if not free:
            remedy = "take a split with more tracks and karts"
            raise InputError(f"a view on {view.track}", f"too few different captions of the kind `{kind}`", remedy)
        drawn.append(rng.choice(free))
        used.add(drawn[-1])
    return drawn


def multiple_choice(scenes_by_image: Scenes, n: int, seed: int) -> list[dict]:
    """`n` questions of 5 different captions in the official mix of kinds, exactly one of them true.

    Raises:
        InputError: the scenes can't provide as many.
    """
    rng = random.Random(seed)
    shares = _shares(n, {kind: count for kind, (count, _) in MC_MIX.items()})
    order = ("relation", "total", "ego", "track")  # the kinds that fewest views can serve come first

    def true_captions(view: Scene, kind: str) -> list[str]:
        return [caption for caption in captions(view) if classify_caption(caption) == kind]

    drawn = _draw(scenes_by_image, {kind: shares[kind] for kind in order}, true_captions, rng)
    karts = sorted({kart.name for view in scenes_by_image.values() for kart in view.karts})
    tracks = sorted({view.track for view in scenes_by_image.values()})
    values = {"ego": karts, "relation": karts, "total": TOTALS, "track": tracks}
    rows = []
    for kind, questions in drawn.items():
        mix = _shares(NUM_DISTRACTORS * len(questions), MC_MIX[kind][1])
        deck = [other for other, count in mix.items() for _ in range(count)]
        rng.shuffle(deck)
        for number, (image, caption) in enumerate(questions):
            kinds = deck[number * NUM_DISTRACTORS : (number + 1) * NUM_DISTRACTORS]
            candidates = [caption, *_distractors(kinds, values, scenes_by_image[image], rng)]
            rng.shuffle(candidates)
            rows.append({"image_file": image, "candidates": candidates, "correct_index": candidates.index(caption)})
    rng.shuffle(rows)
    return rows


def build(
    *, split: str, output: Path, seed: int = 0, num_qa: int = 120, num_mc: int = 200, data: Path = DATA_DIR
) -> None:
    """Write evaluation sets in the official shape and mix: balanced_qa_pairs.json and all_mc_qas.json.

    Args:
        split: where the views come from, e.g. valid
        output: folder to write to, e.g. data/valid_mine
        seed: another seed, other questions; the same seed, the same bytes
        num_qa: question-answer pairs, shared evenly by the kinds
        num_mc: multiple-choice questions
        data: where the splits are
    """
    check_min(1, num_qa=num_qa, num_mc=num_mc)
    scenes_by_image = split_scenes(data, split)
    pairs = balanced_pairs(scenes_by_image, num_qa, seed)
    questions = multiple_choice(scenes_by_image, num_mc, seed)
    write_json(output / QA_FILE, pairs)
    write_json(output / MC_FILE, questions)
    logger.info(f"{output / QA_FILE}: {len(pairs)} pairs")
    logger.info(f"{output / MC_FILE}: {len(questions)} questions")


def _scene_of(image: str, data: Path) -> Scene:
    """The scene of an image file, by its frame."""
    frame, view = parse_image_file(image)
    info_file = data / f"{frame}_info.json"
    info = read_frame_info(info_file)
    if view >= len(info["detections"]):
        raise InputError(info_file, f"no view {view}", f"take {image} out of the questions")
    return build_scene(info, view)


def verify(*, data: Path = DATA_DIR) -> None:
    """Compare the label rule with the official answers and true captions in valid_grader.

    Args:
        data: where the splits are
    """
    pairs, questions = VQADataset("valid_grader", data), MultiChoiceQADataset("valid_grader", data)
    right = 0
    for row in progress_bar(pairs, desc="answers", unit="question", delay=1):
        answer = dict(qa_pairs(_scene_of(row["image_file"], data))).get(row["question"])
        right += answer == row["answer"]
        if answer != row["answer"]:
            print(f"{row['image_file']}: {row['question']} official {row['answer']}, rule {answer}")
    print(f"{right} of {len(pairs)} answers")
    right = several = 0
    for row in progress_bar(questions, desc="captions", unit="question", delay=1):
        true = set(captions(_scene_of(row["image_file"], data)))
        caption = row["candidates"][row["correct_index"]]
        right += caption in true
        several += sum(candidate in true for candidate in row["candidates"]) > 1
        if caption not in true:
            print(f"{row['image_file']}: official {caption} rule {' '.join(sorted(true))}")
    print(f"{right} of {len(questions)} true captions")
    print(f"{several} of {len(questions)} questions hold a second true candidate")


if __name__ == "__main__":
    run(build, verify)
