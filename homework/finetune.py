"""LoRA fine-tuning of the VLM on question-answer pairs: `demo_train`, `train`, `test`, `ask`."""

import logging
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from .labels.rows import DATA_DIR, GRADED_SPLIT, sample_note

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 240
# TuxNano only has to learn the course's wording. With 240 steps it becomes overconfident, since its vision encoder has
# memorised `train`: on unseen races 92.3 % are right after 160 steps and 91.8 after 240 (docs/experiments/log.md).
DEFAULT_STEPS_TUX_NANO = 160


def train(
    base: str = "tux_nano",
    split: str = "train",
    data: str = str(DATA_DIR),
    output: str = "runs/vlm",
    run_dir: str | None = None,
    pairs: str | None = None,
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    rank: int = 16,
    seed: int = 0,
    progress_questions: int = 100,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
    report_to: str | None = None,
) -> None:
    """LoRA fine-tune the VLM on every *_qa_pairs.json of a split. A stopped run resumes when it is started again.

    Example: python -m homework.finetune train --base HuggingFaceTB/SmolVLM-256M-Instruct --output runs/smolvlm

    Args:
        base: folder or hub name of an Idefics3 model, or tux_nano.
        split: folder of the data to train on.
        data: the data folder.
        output: folder for the adapter; `bundle.py` packs runs/vlm.
        run_dir: folder for checkpoints, TensorBoard and log.jsonl; by default that of the adapter with -run appended.
        pairs: folder to read the pairs from, written by `generate_qa generate --output`; by default data.
        steps: number of batches; by default 240, or 160 with tux_nano.
        batch_size: views per batch, each with all its questions.
        learning_rate: its maximum.
        rank: of LoRA.
        seed: of LoRA's weights and the order of views.
        progress_questions: number of questions to evaluate on while training, about moments held out of it.
        micro_batch_size: views in memory at once, a divisor of the batch; by default as many as fit.
        gradient_checkpointing: train in less memory, but slower; for SmolVLM.
        report_to: an experiment tracker, trackio or wandb, beside TensorBoard.
    """
    import torch

    from .base_vlm import BaseVLM
    from .labels.eval_sets import balanced_pairs
    from .labels.rows import check_not_eval_split
    from .models.loading import base_id, load_base
    from .models.runs import default_run_dir
    from .models.tux_nano.model import TuxNano
    from .training.callbacks import check_reporter
    from .training.checkpoints import check_output_dirs
    from .training.held_out import progress_rows
    from .training.lora import add_lora
    from .training.packing import PackedTrainingModule, PackedVQADataset, collate_views
    from .training.trainer import TrainingConfig, fit
    from .utils.errors import check_min

    check_not_eval_split(split)
    check_min(1, steps=steps, batch_size=batch_size, rank=rank, micro_batch_size=micro_batch_size)
    check_min(0, learning_rate=learning_rate, seed=seed, progress_questions=progress_questions)
    check_reporter(report_to)
    data_dir, folders = Path(data), (Path(run_dir or default_run_dir(output)), Path(output))
    check_output_dirs(*folders)
    dataset = PackedVQADataset.of_split(split, data_dir, pairs)
    torch.manual_seed(seed)
    model, processor = load_base(base)
    vlm = BaseVLM.from_parts(add_lora(model, rank, base), processor)
    if steps is None:
        steps = DEFAULT_STEPS_TUX_NANO if isinstance(model, TuxNano) else DEFAULT_STEPS
    data_settings = len(dataset), dataset.fingerprint()
    config = TrainingConfig(base_id(base), split, steps, batch_size, learning_rate, rank, seed, *data_settings)
    module, collate = PackedTrainingModule(vlm.model), partial(collate_views, processor=processor, tokens=vlm.tokens)
    evaluate = partial(_evaluate, vlm, progress_rows(balanced_pairs, progress_questions, data_dir, split))
    options = micro_batch_size, gradient_checkpointing, report_to, f"python -m homework.finetune test {output}"
    fit(module, dataset, collate, config, *folders, evaluate, *options)


def _evaluate(vlm, rows: list[dict]) -> dict[str, float]:
    """Return the accuracy in percent, in total and by question type; nothing without rows."""
    from .data import benchmark

    if not rows:
        return {}
    result = benchmark(vlm, rows)
    by_type = {f"accuracy_{name}": 100 * accuracy for name, accuracy in result.accuracy_by_type.items()}
    return {"accuracy": 100 * result.accuracy} | by_type


def demo_train(base: str = "tux_nano", data: str = str(DATA_DIR)) -> None:
    """Train on the 5 pairs of data/train_demo: shows in seconds that all is set up.

    Args:
        base: folder or hub name of an Idefics3 model, or tux_nano.
        data: the data folder.
    """
    import shutil

    from .training.checkpoints import read_manifest

    output = Path("runs/demo")
    if read_manifest(output).get("config", {}).get("split") == "train_demo":
        shutil.rmtree(output, ignore_errors=True)  # that of an earlier call, which would count as finished
    train(base, "train_demo", data, str(output), steps=10, batch_size=5, progress_questions=0)
    logger.info("all is set up; next: python -m homework.finetune train")


def load(name: str | Path = "vlm"):
    """Load the shipped VLM, in a bundle the packed one: a `BaseVLM`.

    Args:
        name: a checkpoint's folder, or its name in runs; by default the one inside the package.

    Raises:
        InputError: no checkpoint, or one of another base.
    """
    from .base_vlm import BaseVLM
    from .models.loading import checkpoint_folder

    return BaseVLM(checkpoint_folder(name))


def test(
    checkpoint: str,
    /,
    split: str = "valid_grader",
    data: str = str(DATA_DIR),
    all_questions: bool = False,
    paraphrased: bool = False,
    output: str | None = None,
) -> None:
    """Benchmark a checkpoint: accuracy in total and by question type, by prefix match and exact match.

    Example: python -m homework.finetune test runs/vlm --split valid --all-questions

    Args:
        checkpoint: a PEFT folder or its name in runs, a base, or `vlm`, the shipped one; yours is `runs/vlm`.
        split: folder of the data to evaluate on.
        data: the data folder.
        all_questions: generate every question from the split's frames, except counts of 0, which the official questions
            do not have either, instead of reading its annotation files.
        paraphrased: ask each question in ten other wordings as well, which no training uses.
        output: a JSON file for every answer.
    """
    from .data import VQADataset, benchmark, benchmark_paraphrased, print_points
    from .models.loading import checkpoint_folder
    from .training.checkpoints import describe_next, print_base_accuracy
    from .utils.io import check_writable, write_json

    if output:
        check_writable(output)
    rows = generate_questions(split, Path(data)) if all_questions else VQADataset(split, data)
    vlm = load(checkpoint)
    vlm.show_progress = True
    other_words = benchmark_paraphrased(vlm, rows) if paraphrased else None
    result = other_words.course if other_words else benchmark(vlm, rows)
    rest = ", without counts of 0, which the official questions do not have either" if all_questions else ""
    part = "all of " if all_questions else ""
    _print_result(result, f"{checkpoint} on {part}{split}{sample_note(data, split)}", rest)
    if split == GRADED_SPLIT and not all_questions:
        print_points("vlm", result.accuracy)
    if other_words:
        _print_paraphrased(other_words)
    folder = checkpoint_folder(checkpoint)
    print_base_accuracy(folder)
    analysis = f"`python -m viewer.error_analysis {checkpoint}` shows where it fails"
    logger.info(f"next: {analysis}, {describe_next(folder, 'vlm')}")
    if output:
        write_json(output, result.to_json())


def generate_questions(split: str, data_dir: Path) -> list[dict]:
    """Return all question-answer pairs of a split, except counts of 0, which the official set does not hold either."""
    from .labels.eval_sets import split_scenes
    from .labels.questions import generate_official_questions
    from .labels.rows import add_image_paths

    rows = [
        {"image_file": image, "question": question, "answer": answer}
        for image, scene in split_scenes(data_dir, split).items()
        for _, question, answer in generate_official_questions(scene)
    ]
    return add_image_paths(rows, data_dir)


def _print_result(result, title: str, rest: str = "") -> None:
    """Print accuracy in total and by question type, beside that of guessing and with intervals by moment."""
    from .data import ALL, guessing_baselines, print_accuracies
    from .labels.duplicates import MEAN

    n, by_type, numbers = len(result.samples), result.accuracy_by_type, result.num_by_type
    guesses = guessing_baselines((sample.question, sample.correct_answer) for sample in result.samples)
    columns = [by_type, result.exact_accuracy_by_type, guesses["chance"], guesses["most frequent answer"]]
    once = result.by_moment
    rows = [(name, [column[name] for column in columns], n, once[name]) for name, n in sorted(numbers.items())]
    macro = [sum(column.values()) / len(column) for column in columns]
    micro = [sum(column[name] * number for name, number in numbers.items()) / n for column in columns]
    rows += [("mean of types", macro, "", once[MEAN]), (ALL, micro, n, once[ALL])]
    print_accuracies(f"{title}: {n} questions{rest}", ("prefix", "exact", "chance", "majority"), rows)
    print("chance: any answer that the question has here; majority: always its most frequent one")


def _print_paraphrased(result) -> None:
    """Print the accuracy in other words beside that in the course's, and the worst wordings."""
    columns = [result.course.accuracy_by_type, result.words, result.agreement, result.possible]
    rows = {name: [column[name] for column in columns] for name in sorted(result.words)}
    rows["mean of types"] = [sum(column.values()) / len(column) for column in columns]
    print("the same questions in ten other wordings each")
    print(f"{'':16}{'course':>9}{'others':>9}{'agree':>9}{'possible':>9}")
    for name, shares in rows.items():
        print(f"  {name:14}" + "".join(f"{100 * share:9.1f}" for share in shares))
    print("agree: answers that equal the one in the course's words; possible: that the question can have")
    worst = sorted(result.wordings, key=result.wordings.get)[:3]
    print("worst: " + ", ".join(f"{wording!r} {100 * result.wordings[wording]:.1f}" for wording in worst))


def ask(
    images: tuple[str, ...],
    /,
    question: str | None = None,
    checkpoint: str = "vlm",
    jsonl: bool = False,
) -> None:
    """Answer questions about pictures, each answer with the probability that the model gives it.

    Example: python -m homework.finetune ask data/valid/00000_00_im.jpg --question "What track is this?"

    Args:
        images: image files; `-` reads their names from standard input, one per line.
        question: what to ask; by default ego kart, number of karts, track, and karts in front and to the left.
        checkpoint: a PEFT folder or its name in runs, a base, or `vlm`, the shipped one; yours is `runs/vlm`.
        jsonl: print a JSON object per answer, for programs.
    """
    import json

    from .labels.paraphrases import is_known_question
    from .labels.questions import SHORT_LIST
    from .training.likelihood import IMAGE_BATCH_SIZE, compute_probabilities
    from .utils.errors import file_not_found, make_printable

    if missing := next((image for image in images if image != "-" and not Path(image).is_file()), None):
        raise file_not_found(missing, "no such image")
    if question and not is_known_question(question):
        print("note: not one of the course's questions: the answer may mean nothing", file=sys.stderr)
    vlm, questions, names = load(checkpoint), [question] if question else SHORT_LIST, _read_names(images)
    while batch := list(islice(names, IMAGE_BATCH_SIZE)):
        asked = [(image, text) for image in batch for text in questions]
        answers = dict(zip(asked, vlm.answer(*zip(*asked, strict=True)), strict=True))
        pairs = {image: [(text, answers[image, text]) for text in questions] for image in batch}
        found = compute_probabilities(vlm, pairs)
        for image, text in asked:
            answer = answers[image, text]
            probability = found[image][text, answer]
            if jsonl:
                row = {"image": image, "question": text, "answer": answer, "probability": round(probability, 4)}
                print(json.dumps(row), flush=True)
            else:
                heading = f"{image}\n" if text == questions[0] else ""
                print(f"{heading}  {text:48}{make_printable(answer):24}{100 * probability:5.1f} %")


def _read_names(images: Iterable[str]) -> Iterator[str]:
    """Yield the names given, those of standard input in the place of `-`."""
    for image in images:
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip()) if image == "-" else [image]


if __name__ == "__main__":
    from .utils.cli import run

    run(demo_train, train, test, ask)
