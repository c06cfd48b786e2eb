"""Build evaluation sets like the official ones, and verify the label rule against the official ones."""

import logging
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from ..utils.cli import run
from ..utils.errors import InputError, check_min
from ..utils.io import write_json
from ..utils.progress import progress_bar
from .questions import CAPTIONS, QUESTION_TYPES, captions, generate_official_questions, qa_pairs
from .rows import DATA_DIR, MultiChoiceQADataset, VQADataset, image_file, info_files, split_folder
from .scene import Scene

logger = logging.getLogger(__name__)

QA_FILE, MC_FILE = "balanced_qa_pairs.json", "all_mc_qas.json"
NUM_DISTRACTORS = 4

# Of the 200 official questions: the number whose true caption is of a type, and the types of their distractors.
MC_MIX = {
    "total": (58, {"track": 107, "ego": 78, "total": 44, "relation": 3}),
    "track": (55, {"track": 90, "ego": 90, "total": 37, "relation": 3}),
    "ego": (45, {"track": 79, "ego": 64, "total": 30, "relation": 7}),
    "relation": (42, {"track": 69, "ego": 53, "total": 19, "relation": 27}),
}
TOTAL_VALUES = [str(n) for n in range(10)]  # the numbers in the official distractors of type `total`

Scenes = dict[str, Scene]


def split_scenes(data_dir: str | Path, split: str) -> Scenes:
    """Read the scene of every view of a split: image file -> scene.

    Raises:
        InputError: the split is missing or has no views, or a frame is broken.
    """
    from .frame_info import read_scenes  # deferred, see there

    folder = split_folder(data_dir, split)
    scenes_by_image = {
        image_file(path, view): scene
        for path in progress_bar(info_files(folder), desc="reading frames", unit="frame", delay=1)
        for view, scene in read_scenes(path)
    }
    if not scenes_by_image:
        raise InputError(folder, "its frames have no views", "choose another split")
    return scenes_by_image


def _apportion(n: int, weights: dict[str, int]) -> dict[str, int]:
    """Split `n` into whole numbers in proportion to the weights (largest remainder method)."""
    exact = {key: Fraction(n * weight, sum(weights.values())) for key, weight in weights.items()}
    shares = {key: int(value) for key, value in exact.items()}
    by_remainder = sorted(exact, key=lambda key: shares[key] - exact[key])
    for key in by_remainder[: n - sum(shares.values())]:
        shares[key] += 1
    return shares


def _sample_views(
    scenes_by_image: Scenes, shares: dict[str, int], list_items: Callable[[Scene, str], list], rng: random.Random
) -> dict[str, list[tuple[str, object]]]:
    """Sample (image file, item) pairs for each type, each image at most once.

    Args:
        shares: type -> number of pairs. Types that fit the fewest views come first.
        list_items: returns the items (QA pairs or captions) of a type for a scene.
    """
    images = sorted(scenes_by_image)
    sampled = {}
    for name, share in shares.items():
        rng.shuffle(images)  # again for each type, since the previous one took suitable views from the front
        suitable = (image for image in images if list_items(scenes_by_image[image], name))
        taken = [image for image, _ in zip(suitable, range(share), strict=False)]
        if len(taken) < share:
            split = Path(next(iter(scenes_by_image), "the split/none")).parent
            problem = f"only {len(taken)} views left for {share} questions of type `{name}`, one per view"
            raise InputError(split, problem, "request fewer questions or choose a larger split")
        sampled[name] = [(image, rng.choice(list_items(scenes_by_image[image], name))) for image in taken]
        taken = set(taken)
        images = [image for image in images if image not in taken]
    return sampled


def _official_pairs(scene: Scene, question_type: str) -> list[tuple[str, str]]:
    """List the QA pairs of a type that the official evaluation would include."""
    return [pair for row, *pair in generate_official_questions(scene) if row.question_type == question_type]


def _true_captions(scene: Scene, caption_type: str) -> list[str]:
    """List the captions of a type that are true of a scene."""
    rows = [row for row in CAPTIONS if row.caption_type == caption_type]
    return [row.template.format(value) for row in rows for value in row.values_fn(scene)]


def balanced_pairs(scenes_by_image: Scenes, n: int, seed: int) -> list[dict]:
    """Sample `n` QA pairs, equally many of each type, at most one per image, without counts of 0.

    Raises:
        InputError: too few views.
    """
    # relation and count need two karts; ego, total and track fit any view; nothing is known about added types
    known = ("count", "relation", "total", "ego", "track")
    order = (*(name for name in QUESTION_TYPES if name not in known), *known)
    shares = _apportion(n, dict.fromkeys(QUESTION_TYPES, 1))
    shares = {name: shares[name] for name in order}
    sampled = _sample_views(scenes_by_image, shares, _official_pairs, random.Random(seed))
    return [
        {"question": question, "answer": answer, "image_file": image}
        for name in QUESTION_TYPES
        for image, (question, answer) in sampled[name]
    ]


def _sample_distractors(types: list[str], values: dict[str, list[str]], scene: Scene, rng: random.Random) -> list[str]:
    """Sample one caption of each of the types, all different and false for the scene.

    Args:
        values: caption type -> values to fill its templates with. As in the official set, captions of type `relation`
            use the scene's karts if it has any.
    """
    values_here = {"relation": [kart.name for kart in scene.karts]}
    used = set(captions(scene))
    distractors = []
    for name in types:
        templates = [row.template for row in CAPTIONS if row.caption_type == name]
        texts = [template.format(value) for template in templates for value in values_here.get(name) or values[name]]
        unused = [text for text in texts if text not in used]
        if not unused:
            problem, remedy = f"too few distinct captions of type `{name}`", "choose a split with more tracks and karts"
            raise InputError(f"a view on {scene.track}", problem, remedy)
        distractors.append(rng.choice(unused))
        used.add(distractors[-1])
    return distractors


def multiple_choice(scenes_by_image: Scenes, n: int, seed: int) -> list[dict]:
    """Sample `n` questions with 5 distinct candidates, exactly one true, in the official mix of types.

    Raises:
        InputError: too few views, karts or tracks.
    """
    rng = random.Random(seed)
    shares = _apportion(n, {name: count for name, (count, _) in MC_MIX.items()})
    order = ("relation", "total", "ego", "track")  # types that fit the fewest views first

    sampled = _sample_views(scenes_by_image, {name: shares[name] for name in order}, _true_captions, rng)
    karts = sorted({kart.name for scene in scenes_by_image.values() for kart in scene.karts})
    tracks = sorted({scene.track for scene in scenes_by_image.values()})
    values = {"ego": karts, "relation": karts, "total": TOTAL_VALUES, "track": tracks}
    rows = []
    for name, questions in sampled.items():
        mix = _apportion(NUM_DISTRACTORS * len(questions), MC_MIX[name][1])
        deck = [other for other, count in mix.items() for _ in range(count)]
        rng.shuffle(deck)
        for number, (image, caption) in enumerate(questions):
            types = deck[number * NUM_DISTRACTORS : (number + 1) * NUM_DISTRACTORS]
            candidates = [caption, *_sample_distractors(types, values, scenes_by_image[image], rng)]
            rng.shuffle(candidates)
            rows.append({"image_file": image, "candidates": candidates, "correct_index": candidates.index(caption)})
    rng.shuffle(rows)
    return rows


def build(
    *, split: str, output: Path, seed: int = 0, num_qa: int = 120, num_mc: int = 200, data: Path = DATA_DIR
) -> None:
    """Build evaluation sets like the official ones: balanced_qa_pairs.json and all_mc_qas.json.

    Args:
        split: the split that the views come from, e.g. valid
        output: folder to write to, e.g. data/valid_mine
        seed: random seed; the same seed gives the same bytes
        num_qa: number of question-answer pairs, balanced over the question types
        num_mc: number of multiple-choice questions
        data: the folder of the splits
    """
    check_min(1, num_qa=num_qa, num_mc=num_mc)
    scenes_by_image = split_scenes(data, split)
    pairs = balanced_pairs(scenes_by_image, num_qa, seed)
    questions = multiple_choice(scenes_by_image, num_mc, seed)
    for name, rows in ((QA_FILE, pairs), (MC_FILE, questions)):
        write_json(output / name, rows)
        logger.info(f"{output / name}: {len(rows)} questions")


def verify(*, data: Path = DATA_DIR) -> None:
    """Compare the label rule with the official answers and true captions in valid_grader.

    Args:
        data: the folder of the splits
    """
    from .frame_info import read_scene  # deferred, see there

    pairs, questions = VQADataset("valid_grader", data), MultiChoiceQADataset("valid_grader", data)
    correct = 0
    for row in progress_bar(pairs, desc="answers", unit="question", delay=1):
        answer = dict(qa_pairs(read_scene(row["image_file"], data))).get(row["question"])
        correct += answer == row["answer"]
        if answer != row["answer"]:
            print(f"{row['image_file']}: {row['question']} official {row['answer']}, rule {answer}")
    print(f"{correct} of {len(pairs)} answers")
    correct = ambiguous = 0
    for row in progress_bar(questions, desc="captions", unit="question", delay=1):
        true = set(captions(read_scene(row["image_file"], data)))
        caption = row["candidates"][row["correct_index"]]
        correct += caption in true
        ambiguous += sum(candidate in true for candidate in row["candidates"]) > 1
        if caption not in true:
            print(f"{row['image_file']}: official {caption} rule {' '.join(sorted(true))}")
    print(f"{correct} of {len(questions)} true captions")
    print(f"{ambiguous} of {len(questions)} questions have more than one true candidate")


if __name__ == "__main__":
    run(build, verify)
