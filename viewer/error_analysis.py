"""Analyse a VLM's errors: `python -m viewer.error_analysis homework/weights/vlm --split valid`.

The VLM answers every question about every view of a split. Tables give the exact-match accuracy over the questions of
the official evaluation (no count of 0); consistency is measured over all questions.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from homework.labels.eval_sets import split_scenes
from homework.labels.questions import QUESTION_TYPES
from homework.labels.rows import DATA_DIR, sample_note
from homework.utils.cli import run
from homework.utils.io import write_json

from .answers import (
    AnsweredQuestion,
    Group,
    answer_all_questions,
    consistency,
    count_correct,
    count_training_pairs,
    format_percent,
    group_by_kart_size,
    group_by_num_karts,
    group_by_training_pair,
    mean_of_types,
    score,
    score_guesses,
)
from .causes import find_causes

NUM_MISTAKES = 30  # lines
NUM_CAUSES = 3  # in the summary


def summarize(
    title: str, answers: Sequence[AnsweredQuestion], all_answers: Sequence[AnsweredQuestion], data_dir: Path
) -> list[str]:
    """Summarize how good the answers are, where they are worst, and why they are wrong, in three lines."""
    result, causes = score(answers), find_causes(answers, all_answers, data_dir)
    by_accuracy = sorted(result.accuracy_by_type.items(), key=lambda pair: pair[1])
    worst_best = [f"{name} ({format_percent(share)} %)" for name, share in (by_accuracy[0], by_accuracy[-1])]
    guesses = {name: mean_of_types(shares) for name, shares in score_guesses(answers).items()}
    num_agreeing, num_views = consistency(all_answers).get("all of a view", (0, 0))
    num_errors = sum(not answer.is_correct for answer in answers)
    shares = {cause.name: len(cause.errors) / num_errors for cause in causes[:NUM_CAUSES]}
    return [
        f"{title}: {format_percent(result.macro_accuracy)} % of {len(answers):,} questions right, mean of types; "
        + _list_percent(guesses),
        f"worst type {worst_best[0]}, best {worst_best[1]}; {num_agreeing:,} of {num_views:,} views with karts have "
        "answers that agree with each other",
        f"{num_errors:,} errors, each with one or more causes: {_list_percent(shares)}" if shares else "no errors",
    ]


def _list_percent(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {format_percent(share)} %" for name, share in shares.items())


def format_table(title: str, answers: Iterable[AnsweredQuestion], group: Group) -> list[str]:
    """Format the accuracy in percent and the number of questions by group and question type as lines."""
    correct, total = count_correct(answers, group)
    names = sorted({name for name, _ in total})
    types = [type_ for type_ in QUESTION_TYPES if any(total[name, type_] for name in names)]
    rows = [(title, *types)]
    rows += [(f"  {name}", *(_format_share(correct[name, t], total[name, t]) for t in types)) for name in names]
    return [f"{name:24}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in rows] + [""]


def _format_share(correct: int, total: int) -> str:
    return f"{format_percent(correct / total)} of {total:,}" if total else "-"


def analyze(checkpoint: str, /, split: str = "valid", data: str = str(DATA_DIR), output: str | None = None) -> None:
    """Answer every question about a split; print accuracy by difficulty, mistakes and consistency.

    Example: python -m viewer.error_analysis homework/weights/vlm --split valid

    Args:
        checkpoint: VLM checkpoint: a PEFT folder, a base, or `vlm`, the shipped one; yours is `runs/vlm`.
        split: folder of the data to evaluate on.
        data: data folder; its `train` tells which pairs of kart and track occur in training.
        output: write the consistency and every answer to this JSON file.
    """
    from homework.finetune import load

    data_dir = Path(data)
    scenes = split_scenes(data_dir, split)
    pairs = count_training_pairs(data_dir)
    vlm = load(checkpoint)
    vlm.show_progress = True
    answers = answer_all_questions(vlm, scenes, data_dir)
    official = [answer for answer in answers if answer.is_official]
    title = f"{checkpoint} on all of {split}{sample_note(data, split)}"
    print("\n".join(summarize(title, official, answers, data_dir)))
    print("\nexact-match accuracy in percent, of the number of questions\n")
    lines = format_table("all", official, lambda _: "")
    lines += format_table("karts in the view", official, group_by_num_karts)
    lines += format_table("kart size in pixels", official, group_by_kart_size)
    if pairs:
        lines += format_table("ego kart on the track", official, group_by_training_pair(pairs))
    mistakes = Counter((row.question_type, row.truth, row.answer) for row in official if not row.is_correct)
    lines += ["most frequent mistakes: type, truth, answer, number"]
    lines += [f"  {row[0]:12}{row[1]:22}{row[2]:22}{number:6,}" for row, number in mistakes.most_common(NUM_MISTAKES)]
    counts = [answer for answer in answers if answer.question_type == "count"]
    lines += ["", *format_table("counts, 0 included", counts, lambda row: "0" if row.truth == "0" else "others")]
    found = consistency(answers)
    lines += ["consistency", *(f"  {name:32}{_format_share(*numbers):>16}" for name, numbers in found.items())]
    print("\n".join(lines))
    if output:
        samples = [
            {"image_file": row.image, "question": row.question, "model_answer": row.answer, "correct_answer": row.truth}
            for row in answers
        ]
        write_json(output, {"consistency": found, "samples": samples})


if __name__ == "__main__":
    run(analyze)
