"""CLIP on the VLM's encoders, trained on captions: `train`, `test`."""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .labels.rows import DATA_DIR, GRADED_SPLIT, add_image_paths, sample_note

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 300
IMAGE_BATCH_SIZE, TEXT_BATCH_SIZE = 64, 256  # for evaluation


def train(
    base: str = "tux_nano",
    split: str = "train",
    data: str = str(DATA_DIR),
    output: str = "runs/clip",
    run_dir: str | None = None,
    pairs: str | None = None,
    steps: int = DEFAULT_STEPS,
    batch_size: int | None = None,
    learning_rate: float = 2e-3,
    rank: int = 16,
    seed: int = 0,
    progress_questions: int = 200,
    micro_batch_size: int | None = None,
    gradient_checkpointing: bool = False,
    report_to: str | None = None,
) -> None:
    """Train CLIP on every *_captions.json of a split. A stopped run resumes when it is started again.

    Example: python -m homework.clip train --base HuggingFaceTB/SmolVLM-256M-Instruct --output runs/smolclip

    Args:
        base: folder or hub name of an Idefics3 model, or tux_nano.
        split: folder of the data to train on.
        data: the data folder.
        output: folder for the adapter; `bundle.py` packs runs/clip.
        run_dir: folder for checkpoints, TensorBoard and log.jsonl; by default that of the adapter with -run appended.
        pairs: folder to read the captions from, written by `generate_captions generate --output`; by default data.
        steps: number of batches.
        batch_size: views per batch; by default 64, or 128 with tux_nano, whose image features are cached.
        learning_rate: its maximum.
        rank: of LoRA.
        seed: of the new weights, the order of views, and the sample of captions where there are many.
        progress_questions: number of questions to evaluate on while training, about moments held out of it.
        micro_batch_size: views in memory at once, a divisor of the batch; by default as many as fit.
        gradient_checkpointing: train in less memory, but slower; for SmolVLM.
        report_to: an experiment tracker, trackio or wandb, beside TensorBoard.
    """
    import torch

    from .labels.eval_sets import multiple_choice
    from .labels.rows import check_not_eval_split
    from .models.clip import CLIP
    from .models.loading import base_id, load_base
    from .models.runs import default_run_dir
    from .training.callbacks import check_reporter
    from .training.checkpoints import check_output_dirs
    from .training.clip_dataset import CaptionMatchingDataset, CLIPTrainingModule, add_lora_to_clip, training_set
    from .training.held_out import progress_rows
    from .training.trainer import TrainingConfig, fit
    from .utils.errors import check_min

    check_not_eval_split(split)
    check_min(1, steps=steps, batch_size=batch_size, rank=rank, micro_batch_size=micro_batch_size)
    check_min(0, learning_rate=learning_rate, seed=seed, progress_questions=progress_questions)
    check_reporter(report_to)
    data_dir, folders = Path(data), (Path(run_dir or default_run_dir(output)), Path(output))
    check_output_dirs(*folders)
    views = CaptionMatchingDataset.of_split(split, data_dir, pairs)
    torch.manual_seed(seed)
    model, processor = load_base(base)
    module = CLIPTrainingModule(add_lora_to_clip(CLIP.from_vlm(model), rank, base))
    dataset, collate = training_set(views, module.base, processor.tokenizer, seed)
    batch_size = default_batch_size(module.base) if batch_size is None else batch_size
    data_settings = len(views), views.fingerprint()
    config = TrainingConfig(base_id(base), split, steps, batch_size, learning_rate, rank, seed, *data_settings)
    rows = progress_rows(multiple_choice, progress_questions, data_dir, split)
    evaluate = partial(_evaluate, module.base, processor.tokenizer, rows)
    options = micro_batch_size, gradient_checkpointing, report_to, f"python -m homework.clip test {output}"
    fit(module, dataset, collate, config, *folders, evaluate, *options)


def default_batch_size(clip) -> int:
    """Return the default number of views per batch: with cached features, twice as many cost little more."""
    return 64 if clip.vision_is_trainable else 128


def _evaluate(clip, tokenizer, rows: list[dict]) -> dict[str, float]:
    """Return the accuracy in percent; nothing without rows."""
    if not rows:
        return {}
    correct, total = count_correct_by_type(rows, predict(clip, tokenizer, rows))
    return {"accuracy": 100 * correct.total() / total.total()}


def load(name: str | Path = "clip"):
    """Load the shipped CLIP, in a bundle the packed one; its `.model` is a `CLIP`.

    Args:
        name: a checkpoint's folder, or its name in runs; by default the one inside the package.

    Raises:
        InputError: no checkpoint, or one of another base.
    """
    return load_with_tokenizer(name)[0]


def load_with_tokenizer(name: str | Path) -> tuple:
    """Load a CLIP and the tokenizer of its texts; raises what `load` does."""
    from .models.clip import CLIP
    from .models.loading import add_adapter, checkpoint_folder, load_base
    from .models.lora_weights import check_is_part, read_adapter_base
    from .models.runs import check_is_finished

    folder = checkpoint_folder(name)
    check_is_finished(folder, "clip")
    base = read_adapter_base(folder)
    check_is_part(folder, "clip")
    model, processor = load_base(base)
    clip = add_adapter(CLIP.from_vlm(model), folder)
    clip.model.load_pretrained(folder)
    return clip.eval(), processor.tokenizer


def predict(clip, tokenizer, rows: Sequence[dict], show_progress: bool = False) -> list[int]:
    """Return, for each row, the index of the candidate nearest to the image; each text is encoded once."""
    import torch

    from .models.clip import tokenize
    from .models.images import clip_pixels
    from .models.loading import unwrap
    from .utils.images import open_image
    from .utils.progress import progress_bar

    device, model = next(clip.parameters()).device, unwrap(clip).eval()
    texts = sorted({candidate for row in rows for candidate in row["candidates"]})
    index = {text: i for i, text in enumerate(texts)}
    predictions = []
    progress = progress_bar(total=len(rows), desc="comparing", unit="image", shown=show_progress)
    with torch.inference_mode():
        chunks = (tokenize(texts[i : i + TEXT_BATCH_SIZE], tokenizer) for i in range(0, len(texts), TEXT_BATCH_SIZE))
        encoded = [model.encode_text(**{name: ids.to(device) for name, ids in chunk.items()}) for chunk in chunks]
        text_features = torch.cat(encoded)  # [texts, dim]
        for start in range(0, len(rows), IMAGE_BATCH_SIZE):
            chunk = rows[start : start + IMAGE_BATCH_SIZE]
            pixels = clip_pixels([open_image(row["image_path"]) for row in chunk])
            similarities = model.encode_image(pixels.to(device)) @ text_features.T  # [b, texts]
            for row, similarity in zip(chunk, similarities, strict=True):
                candidates = similarity[[index[candidate] for candidate in row["candidates"]]]
                predictions.append(int(candidates.argmax()))
            progress.update(len(chunk))
    progress.close()
    return predictions


def count_correct_by_type(rows: Sequence[dict], predictions: Sequence[int]) -> tuple[Counter, Counter]:
    """Return (correct, total) by the type of the true caption."""
    from .labels.questions import classify_caption

    correct, total = Counter(), Counter()
    for row, predicted in zip(rows, predictions, strict=True):
        caption_type = classify_caption(row["candidates"][row["correct_index"]])
        total[caption_type] += 1
        correct[caption_type] += predicted == row["correct_index"]
    return correct, total


def test(
    checkpoint: str,
    /,
    split: str = "valid_grader",
    data: str = str(DATA_DIR),
    num_questions: int = 0,
    output: str | None = None,
) -> None:
    """Benchmark a checkpoint on multiple-choice questions: accuracy in total and by caption type.

    Example: python -m homework.clip test runs/clip --split valid --num-questions 2000

    Args:
        checkpoint: a PEFT folder with additional_weights.pt, its name in runs, or `clip`, the shipped one; yours is
            `runs/clip`.
        split: folder of the data to evaluate on.
        data: the data folder.
        num_questions: generate so many questions from the split's frames instead of reading its annotation files.
        output: a JSON file for every prediction.
    """
    from .data import MultiChoiceQADataset, print_points
    from .models.loading import checkpoint_folder
    from .training.checkpoints import describe_next, print_base_accuracy
    from .utils.errors import check_min
    from .utils.io import check_writable, write_json

    check_min(0, num_questions=num_questions)
    if output:
        check_writable(output)
    if num_questions:
        from .labels.eval_sets import multiple_choice, split_scenes

        rows = add_image_paths(multiple_choice(split_scenes(data, split), num_questions, seed=0), Path(data))
    else:
        rows = MultiChoiceQADataset(split, data).rows
    clip, tokenizer = load_with_tokenizer(checkpoint)
    predictions = predict(clip, tokenizer, rows, show_progress=True)
    part = f"{num_questions} questions from " if num_questions else ""
    _print_score(rows, predictions, f"{checkpoint} on {part}{split}{sample_note(data, split)}")
    if split == GRADED_SPLIT and not num_questions:
        print_points("clip", count_correct_by_type(rows, predictions)[0].total() / len(rows))
    folder = checkpoint_folder(checkpoint)
    print_base_accuracy(folder)
    logger.info(f"next: {describe_next(folder, 'clip')}")
    if output:
        write_json(output, [{**row, "prediction": p} for row, p in zip(rows, predictions, strict=True)])


def _print_score(rows: Sequence[dict], predictions: Sequence[int], title: str) -> None:
    """Print accuracy in total and by the type of the true caption."""
    from .data import ALL, estimate_by_moment, print_accuracies
    from .labels.questions import classify_caption

    truths = [row["candidates"][row["correct_index"]] for row in rows]
    hits = [predicted == row["correct_index"] for row, predicted in zip(rows, predictions, strict=True)]
    once = estimate_by_moment([row["image_path"] for row in rows], truths, list(map(classify_caption, truths)), hits)
    correct, total = count_correct_by_type(rows, predictions)
    table = [(name, (correct[name] / total[name],), total[name], once[name]) for name in sorted(total)]
    table.append((ALL, (correct.total() / len(rows),), len(rows), once[ALL]))
    print_accuracies(f"{title}: {len(rows)} questions, chance 20.0", ("correct",), table)


if __name__ == "__main__":
    from .utils.cli import run

    run(train, test)
