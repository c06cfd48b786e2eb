"""What a base answers in the words that it was taught: what it knows before LoRA teaches it the course's."""

from collections import Counter
from pathlib import Path

from homework.base_vlm import BaseVLM
from homework.data import is_exact_match
from homework.labels.eval_sets import Scenes
from homework.labels.questions import QUESTION_TYPES, generate_questions, in_official_eval
from homework.labels.rows import add_image_paths

from .paraphrases import REWORDED

MOST_KARTS = 4  # views with as many or more are one row


def asked_as_taught(vlm: BaseVLM, scenes: Scenes, data_dir: Path) -> tuple[Counter, Counter]:
    """(right, asked) questions by (how many karts the view has, up to MOST_KARTS; kind), without counts of 0.

    Args:
        scenes: by image, relative to `data_dir`.
    """
    rows, keys = [], []
    for image, scene in scenes.items():
        for row, question, answer in generate_questions(scene, REWORDED):
            if in_official_eval(row.question_type, answer):
                rows.append({"image_file": image, "question": question, "answer": answer})
                keys.append((min(MOST_KARTS, len(scene.karts)), row.question_type))
    rows = add_image_paths(rows, data_dir)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    right = Counter()
    for key, row, answer in zip(keys, rows, answers, strict=True):
        right[key] += is_exact_match(answer, row["answer"])
    return right, Counter(keys)


def table(right: Counter, asked: Counter) -> list[str]:
    """Lines: percent right by number of karts and kind, and of all views."""
    lines = ["karts     " + "".join(f"{kind:>10}" for kind in QUESTION_TYPES)]
    classes = [(f"{karts}{' or more' * (karts == MOST_KARTS)}", [karts]) for karts in sorted({k for k, _ in asked})]
    for name, these in [*classes, ("all", range(MOST_KARTS + 1))]:
        shares = []
        for kind in QUESTION_TYPES:
            number = sum(asked[karts, kind] for karts in these)
            shares.append(f"{100 * sum(right[karts, kind] for karts in these) / number:.1f}" if number else "-")
        lines.append(f"{name:10}" + "".join(f"{share:>10}" for share in shares))
    return lines
