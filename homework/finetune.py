"""LoRA fine-tuning of the VLM on question-answer pairs: `demo_train`, `train`, `test`."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .base_vlm import BaseVLM
from .data import BenchmarkResult, benchmark, wilson_interval
from .labels.questions import classify_question, in_official_eval, qa_pairs, sample_weight
from .labels.rows import DATA_DIR, VQADataset, add_image_paths, check_not_eval_split, drop_rows_without_image
from .models.images import load_views
from .models.loading import DEFAULT_BASE, base_id, checkpoint_folder, load_base
from .models.prompts import PromptTokens
from .training.lora import add_lora
from .training.packing import PackedTrainingModule, collate, pack
from .utils.errors import check_min
from .utils.io import check_writable, fingerprint, write_json

DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "vlm"


class PackedVQADataset(Dataset):
    """The views that a split asks about, each with all its pairs.

    Over the split the kinds weigh the same, and an average view's weights sum to 1. `lengths` is how many
    pairs a view has.
    """

    def __init__(self, rows: Sequence[dict], cache_dir: Path | None = None):
        by_image: dict[str, list[dict]] = {}
        for row in rows:
            by_image.setdefault(row["image_path"], []).append(row)
        self.pairs = list(by_image.values())
        totals = Counter()
        for row in rows:
            kind = classify_question(row["question"])
            totals[kind] += sample_weight(kind, row["answer"])
        self.kind_scale = {kind: len(self.pairs) / (len(totals) * total) for kind, total in totals.items()}
        self.lengths = [len(pairs) for pairs in self.pairs]
        self.views = load_views(list(by_image), cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path) -> "PackedVQADataset":
        """Every pair of a split's *_qa_pairs.json whose image is there."""
        return cls(drop_rows_without_image(VQADataset(split, data_dir)), data_dir / ".cache")

    def digest(self) -> str:
        """Of what is learned: images by name, questions, answers."""
        rows = (row for pairs in self.pairs for row in pairs)
        return fingerprint(row[name] for row in rows for name in ("image_file", "question", "answer"))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple["torch.Tensor", list[tuple[str, str, float]]]:
        """(view [100, 150, 3] of uint8, its (question, answer, weight))."""
        pairs = [(row["question"], row["answer"], self._weight(row)) for row in self.pairs[index]]
        return self.views[index], pairs

    def _weight(self, row: dict) -> float:
        kind = classify_question(row["question"])
        return self.kind_scale[kind] * sample_weight(kind, row["answer"])


def collate_views(items: list, processor, tokens: PromptTokens) -> dict[str, Tensor]:
    """Items of `PackedVQADataset` -> a batch for `PackedTrainingModule`."""
    images = [[view] for view, _ in items]
    pixels = processor.image_processor(images, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    packed = [pack(tokens, pairs) for _, pairs in items]
    return collate(packed, pixels, processor.tokenizer.pad_token_id)


def _progress(vlm: BaseVLM, rows: list[dict]) -> dict[str, float]:
    """Accuracy in percent, in total and by kind; nothing without rows."""
    if not rows:
        return {}
    result = benchmark(vlm, rows)
    return {"accuracy": 100 * result.accuracy} | {f"accuracy_{k}": 100 * v for k, v in result.accuracy_by_type.items()}


def default_steps(model: nn.Module) -> int:
    """How many batches by default: a base that recognises has only the course's words to learn.

    With 240 it learns of `train`, of which it knows every view by heart, to be too sure of itself: of races that it has
    not seen 92.3 % are right after 160 steps and 91.8 after 240 (docs/experiments/log.md).
    """
    return 160 if hasattr(model.model.connector, "recogniser") else 240


def train(
    base: str = DEFAULT_BASE,
    split: str = "train",
    data: str = str(DATA_DIR),
    output: str = str(DEFAULT_CHECKPOINT),
    work: str = "runs/vlm",
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 5e-4,
    rank: int = 16,
    seed: int = 0,
    progress_questions: int = 100,
) -> None:
    """LoRA fine-tune the VLM on every *_qa_pairs.json of a split. Stopped and run again, it goes on.

    Example: python -m homework.finetune train --base HuggingFaceTB/SmolVLM-256M-Instruct --output runs/smolvlm

    Args:
        base: folder or hub name of an Idefics3 model.
        split: folder of the data to train on.
        data: the data folder.
        output: where the adapter goes; the default is what `bundle.py` packs.
        work: folder for checkpoints and TensorBoard.
        steps: how many batches; without it 240, or 160 on the embedded base.
        batch_size: views a batch, each with all its questions.
        learning_rate: its highest value.
        rank: of LoRA.
        seed: of LoRA's weights and the order of views.
        progress_questions: how many questions of valid are asked now and then, to watch the training.
    """
    from .labels.eval_sets import balanced_pairs
    from .training.trainer import TrainingConfig, fit, validation_rows

    check_not_eval_split(split)
    check_min(1, steps=steps, batch_size=batch_size, rank=rank)
    check_min(0, learning_rate=learning_rate, seed=seed, progress_questions=progress_questions)
    data_dir = Path(data)
    dataset = PackedVQADataset.of_split(split, data_dir)
    torch.manual_seed(seed)
    model, processor = load_base(base)
    vlm = BaseVLM.from_parts(add_lora(model, rank, base), processor)
    steps = default_steps(model) if steps is None else steps
    recipe = TrainingConfig(base_id(base), steps, batch_size, learning_rate, rank, seed, len(dataset), dataset.digest())
    fit(
        PackedTrainingModule(vlm.model),
        dataset,
        partial(collate_views, processor=processor, tokens=vlm.tokens),
        recipe,
        Path(work),
        Path(output),
        partial(_progress, vlm, validation_rows(balanced_pairs, progress_questions, data_dir)),
    )


def demo_train(base: str = DEFAULT_BASE, data: str = str(DATA_DIR)) -> None:
    """Train on the 5 pairs of data/train_demo: shows in seconds that all is set up.

    Args:
        base: folder or hub name of an Idefics3 model.
        data: the data folder.
    """
    train(base, "train_demo", data, "runs/demo/vlm", "runs/demo/work", steps=10, batch_size=5, progress_questions=25)


def load(name: str | Path = DEFAULT_CHECKPOINT) -> BaseVLM:
    """The submitted VLM.

    Args:
        name: a checkpoint's folder, by default the one beside this file.
    """
    return BaseVLM(checkpoint_folder(name))


def all_questions(split: str, data_dir: Path) -> list[dict]:
    """Every pair of a split but the counts of 0, which the official set doesn't ask either."""
    from .labels.eval_sets import split_scenes

    rows = [
        {"image_file": image, "question": question, "answer": answer}
        for image, scene in split_scenes(data_dir, split).items()
        for question, answer in qa_pairs(scene)
        if in_official_eval(classify_question(question), answer)
    ]
    return add_image_paths(rows, data_dir)


def print_result(result: BenchmarkResult, title: str) -> None:
    """Accuracy in total and by kind, prefix and strict, in percent, with the prefix rule's 95 % interval."""
    print(f"{title}: {len(result.samples)} questions")
    print(f"{'':16}{'prefix':>8}{'strict':>8}{'n':>8}{'95 %':>16}")
    for kind, n in sorted(result.num_by_type.items()):
        _print_row(
            kind,
            result.accuracy_by_type[kind],
            result.exact_accuracy_by_type[kind],
            n,
            wilson_interval(result.accuracy_by_type[kind], n),
        )
    strict_mean = sum(result.exact_accuracy_by_type.values()) / len(result.exact_accuracy_by_type)
    _print_row("mean of kinds", result.macro_accuracy, strict_mean, "", result.macro_interval)
    n = len(result.samples)
    _print_row("all questions", result.accuracy, result.exact_accuracy, n, wilson_interval(result.accuracy, n))


def _print_row(name: str, prefix: float, strict: float, n: int | str, range_: tuple[float, float]) -> None:
    low, high = (100 * value for value in range_)
    print(f"  {name:14}{100 * prefix:8.1f}{100 * strict:8.1f}{n:>8}{low:10.1f}-{high:<5.1f}".rstrip())


def test(
    checkpoint: str,
    /,
    split: str = "valid_grader",
    data: str = str(DATA_DIR),
    whole: bool = False,
    output: str | None = None,
) -> None:
    """Benchmark a checkpoint: accuracy in total and by kind, by the prefix rule and strictly.

    Example: python -m homework.finetune test homework/weights/vlm --split valid --whole

    Args:
        checkpoint: a PEFT folder or a base.
        split: folder of the data to ask about.
        data: the data folder.
        whole: ask everything about the split's frames, not its pair files.
        output: a JSON file for every answer.

    Raises:
        InputError: no such checkpoint or split.
    """
    if output:
        check_writable(output)
    data_dir = Path(data)
    rows = all_questions(split, data_dir) if whole else VQADataset(split, data_dir)
    vlm = BaseVLM(checkpoint)
    vlm.show_progress = True
    result = benchmark(vlm, rows)
    print_result(result, f"{checkpoint} on {'all of ' if whole else ''}{split}")
    if output:
        write_json(output, result.to_json())


if __name__ == "__main__":
    from .utils.cli import run

    run(demo_train, train, test)
