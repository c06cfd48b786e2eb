"""Evaluate a base without LoRA on the paraphrased questions that it was pretrained with."""

from collections import Counter
from pathlib import Path

from homework.base_vlm import BaseVLM
from homework.data import is_exact_match
from homework.labels.eval_sets import Scenes
from homework.labels.questions import QUESTION_TYPES, generate_questions, in_official_eval
from homework.labels.rows import add_image_paths

from .paraphrases import PARAPHRASED_QUESTIONS

MAX_KART_BIN = 4  # views of this many karts or more are one row


def evaluate_paraphrased(vlm: BaseVLM, scenes: Scenes, data_dir: Path) -> tuple[Counter, Counter]:
    """Count correct answers and questions, both by (number of karts up to `MAX_KART_BIN`, question type).

    Counts of 0 are left out, as in the official benchmark.

    Args:
        scenes: by image, relative to `data_dir`.
    """
    rows, keys = [], []
    for image, scene in scenes.items():
        for row, question, answer in generate_questions(scene, PARAPHRASED_QUESTIONS):
            if in_official_eval(row.question_type, answer):
                rows.append({"image_file": image, "question": question, "answer": answer})
                keys.append((min(MAX_KART_BIN, len(scene.karts)), row.question_type))
    rows = add_image_paths(rows, data_dir)
    answers = vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    correct = Counter()
    for key, row, answer in zip(keys, rows, answers, strict=True):
        correct[key] += is_exact_match(answer, row["answer"])
    return correct, Counter(keys)


def format_accuracy_table(correct: Counter, total: Counter) -> list[str]:
    """Format accuracies in percent as lines, one per number of karts and one for all views, by question type."""
    lines = ["karts     " + "".join(f"{kind:>10}" for kind in QUESTION_TYPES)]
    bins = [(f"{n}{' or more' * (n == MAX_KART_BIN)}", [n]) for n in sorted({n for n, _ in total})]
    for name, numbers in [*bins, ("all", range(MAX_KART_BIN + 1))]:
        cells = []
        for kind in QUESTION_TYPES:
            hits, questions = (sum(counts[n, kind] for n in numbers) for counts in (correct, total))
            cells.append(f"{100 * hits / questions:.1f}" if questions else "-")
        lines.append(f"{name:10}" + "".join(f"{cell:>10}" for cell in cells))
    return lines
