"""Ours against the public pipeline of `baseline.py`, in turns on one machine: `python -m benchmarks.vs_baseline run`.

Each measure is taken `pairs` times of both, one after the other, and the median of the ratios is printed with both
medians. Training is timed inside of the Trainer, from the end of the first step to the end of the last.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from homework import clip, generate_captions, generate_qa
from homework.base_vlm import BaseVLM
from homework.finetune import DEFAULT_CHECKPOINT, PackedVQADataset, collate_views
from homework.labels.eval_sets import split_scenes
from homework.labels.rows import DATA_DIR, add_image_paths
from homework.models.loading import (
    DEFAULT_BASE,
    adapter_base,
    load_base,
    load_processor,
    pick_device,
    pick_dtype,
    resolve_base,
)
from homework.training.lora import add_lora
from homework.training.packing import PackedTrainingModule
from homework.training.trainer import AdapterTrainer, use_all_cores
from homework.utils.cli import run as run_commands
from homework.utils.errors import check_min
from homework.utils.io import write_json

from . import baseline
from .throughput import looking, machine, whole_training_rate

CLIP_BATCH, RANK = 64, 16
TRAIN_VIEWS = 2000  # at least, where the split has as many
FIRST = "from homework.finetune import load; print(load().answer([{image!r}], ['What track is this?']), flush=True)"
FIRST_BASELINE = """
import sys
from peft import PeftModel
from transformers import Trainer, TrainingArguments
from benchmarks import baseline
model, processor = baseline.answering({base!r}, {adapter!r})
row = {{"image_path": {image!r}, "question": "What track is this?"}}
print(baseline.answer(model, processor, [row]), flush=True)
"""
PAIRS = """
import time
from pathlib import Path
from benchmarks.plain import write_pairs
from homework.generate_qa import rows
from homework.labels.generate import generate_annotations
begin = time.perf_counter()
{call}(Path({split!r}), {file!r}, rows)
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Measure:
    """Two ways to do the same; each gives units a second."""

    name: str
    baseline: Callable[[], float]
    ours: Callable[[], float]


class Clock(TrainerCallback):
    """The time of each step's end."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *_, **__) -> None:
        """Called by the Trainer."""
        self.ends.append(time.perf_counter())


def train(
    module: nn.Module,
    dataset: Dataset,
    collate: Callable[[list], dict],
    batch_size: int,
    steps: int,
    callback: TrainerCallback,
    learning_rate: float = 1e-4,
) -> None:
    """Train with the Trainer, which saves and prints nothing."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.0,
            optim="adamw_torch_fused",
            bf16=pick_dtype(pick_device()) == torch.bfloat16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            label_names=[],
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
        )
        trainer = AdapterTrainer(
            module, arguments, data_collator=collate, train_dataset=dataset, callbacks=[callback], score=dict
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def training_rate(
    module: nn.Module, dataset: Dataset, collate: Callable, batch_size: int, steps: int, units: Callable[[dict], int]
) -> float:
    """Units a second of training steps with the Trainer, after a first step.

    Args:
        units: how many of them a batch holds.
    """
    clock, counts = Clock(), []

    def counting(items: list) -> dict:
        batch = collate(items)
        counts.append(units(batch))
        return batch

    train(module, dataset, counting, batch_size, steps + 1, clock)
    # the Trainer fetches a batch ahead, so the counts may be one more than the steps
    return sum(counts[1 : steps + 1]) / (clock.ends[steps] - clock.ends[0])


def vlm_training(base: str, rows: list[dict], pixel_cache: Path, batch: int, steps: int) -> Measure:
    """Questions trained a second. A batch holds so many questions of theirs, and so many views of ours."""

    def public() -> float:
        model, processor = baseline.trainable(base, RANK)
        dataset = baseline.OneQuestion(rows, processor)
        collate = partial(baseline.collate, pad_id=processor.tokenizer.pad_token_id)
        return training_rate(model, dataset, collate, batch, steps, lambda batch: len(batch["labels"]))

    def ours() -> float:
        model, processor = load_base(base)
        vlm = BaseVLM.from_parts(add_lora(model, RANK, base), processor)
        collate = partial(collate_views, processor=processor, tokens=vlm.tokens)
        # every answer ends with the end token, and nothing else is labelled with it
        asked = lambda batch: int((batch["labels"] == vlm.tokens.end).sum())
        dataset = PackedVQADataset(rows, pixel_cache)
        return training_rate(PackedTrainingModule(vlm.model), dataset, collate, batch, steps, asked)

    return Measure(f"questions trained, {Path(base).name}", public, ours)


def vlm_answering(base: str, adapter: Path, rows: list[dict]) -> Measure:
    """Questions answered a second, from the image files to the texts; the models are loaded once."""
    model, processor = baseline.answering(base, adapter)
    vlm = BaseVLM(adapter)

    def public() -> float:
        begin = time.perf_counter()
        baseline.answer(model, processor, rows)
        return len(rows) / (time.perf_counter() - begin)

    def ours() -> float:
        begin = time.perf_counter()
        vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
        return len(rows) / (time.perf_counter() - begin)

    same = baseline.answer(model, processor, rows, baseline.as_stored) == vlm.answer(
        [row["image_path"] for row in rows], [row["question"] for row in rows]
    )
    return Measure(f"questions answered ({'the same' if same else 'OTHER'} answers on the same pixels)", public, ours)


def public_clip(base: str, rows: list[dict]) -> tuple[nn.Module, Dataset, Callable]:
    """(module, dataset, collate) of the public pipeline's CLIP."""
    module, processor = baseline.trainable_clip(base, RANK)
    collate = partial(baseline.collate, pad_id=processor.tokenizer.pad_token_id)
    return module, baseline.OneCaption(rows, processor.tokenizer), collate


def our_clip(base: str, rows: list[dict], data: Path) -> tuple[nn.Module, Dataset, Callable]:
    """(module, dataset, collate) of our CLIP."""
    module, tokenizer = clip.build_trainable(base, RANK), load_processor(base).tokenizer
    captioned = clip.CaptionMatchingDataset(rows, data, data / ".cache")
    return module, *clip.training_set(captioned, module.base, tokenizer, seed=0)


def clip_training(base: str, rows: list[dict], data: Path, steps: int) -> Measure:
    """Images trained a second; of ours those of a whole training, with the look at its views."""

    def public() -> float:
        return training_rate(*public_clip(base, rows), CLIP_BATCH, steps, lambda batch: len(batch["pixel_values"]))

    def ours() -> float:
        module, dataset, collate = our_clip(base, rows, data)
        seconds, size = looking(dataset), clip.default_batch_size(dataset)
        rate = training_rate(module, dataset, collate, size, steps, lambda batch: len(batch["truth"]))
        return whole_training_rate(dataset, seconds, rate)

    return Measure("CLIP images trained", public, ours)


def pairs_written(split_dir: Path, folder: Path) -> Measure:
    """Question-answer pairs generated and written a second, each time in a process of its own, as by the command."""

    def timed(call: str, name: str) -> float:
        file = folder / name
        script = PAIRS.format(call=call, split=str(split_dir), file=str(file))
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        return len(json.loads(file.read_bytes())) / float(done.stdout.splitlines()[-1])

    public, ours = partial(timed, "write_pairs", "plain.json"), partial(timed, "generate_annotations", "ours.json")
    return Measure("pairs generated and written", public, ours)


def first_answer(base: str, adapter: Path, image: str) -> Measure:
    """Starts a second, from the interpreter's start to the first answer."""

    def timed(script: str) -> float:
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            answer, seconds = process.stdout.readline(), time.perf_counter() - begin
        if not answer or process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return 1 / seconds

    public = FIRST_BASELINE.format(base=base, adapter=str(adapter), image=image)
    return Measure("starts to the first answer", partial(timed, public), partial(timed, FIRST.format(image=image)))


def compare(measure: Measure, pairs: int) -> dict:
    """Take a measure `pairs` times of both in turns, and print the medians."""
    rates = [(measure.baseline(), measure.ours()) for _ in range(pairs)]
    public, ours = (statistics.median(side) for side in zip(*rates, strict=True))
    ratio = statistics.median(b / a for a, b in rates)
    print(f"{measure.name:64}{public:10.3g}{ours:10.3g}{ratio:8.1f}", flush=True)
    return {"measure": measure.name, "baseline": public, "ours": ours, "ratio": ratio, "rates": rates}


def run(
    *,
    data: Path = DATA_DIR,
    base: str = DEFAULT_BASE,
    adapter: Path = DEFAULT_CHECKPOINT,
    pairs: int = 5,
    batch: int = 32,
    steps: int = 4,
    views: int = 60,
    output: Path | None = None,
) -> None:
    """Print how many times faster than the public pipeline training, answering, writing and starting are.

    With a base that the adapter is not for, e.g. one of `python -m benchmarks.random_smolvlm write`, only the VLM's training
    is timed; where a step takes long, `--batch 4 --steps 1` are enough.

    Args:
        data: the data folder
        base: folder or hub name of an Idefics3 model
        adapter: LoRA on that base, for the answers
        pairs: how often both are timed
        batch: questions, and in ours views, of a step of the VLM's training
        steps: of training a repetition, beside one before the clock runs
        views: of valid, about which everything is asked
        output: write all numbers into this JSON file
    """
    check_min(1, pairs=pairs, batch=batch, steps=steps, views=views)
    use_all_cores()
    state = machine()
    print("\n".join(f"{name.replace('_', ' '):14}{value}" for name, value in state.items()))
    print(f"{'a second':64}{'public':>10}{'ours':>10}{'ratio':>8}")
    train, valid = (sorted(split_scenes(data, split).items()) for split in ("train", "valid"))
    train = train[:: max(1, len(train) // TRAIN_VIEWS)]
    asked = add_image_paths([row for image, scene in train for row in generate_qa.rows(scene, image)], data)
    told = add_image_paths([row for image, scene in train for row in generate_captions.rows(scene, image)], data)
    some = valid[:: max(1, len(valid) // views)][:views]
    questions = add_image_paths([row for image, scene in some for row in generate_qa.rows(scene, image)], data)
    with tempfile.TemporaryDirectory() as folder:
        measures = [partial(vlm_training, base, asked, data / ".cache", batch, steps)]
        if resolve_base(adapter_base(adapter)) == resolve_base(base):
            measures += [
                partial(clip_training, base, told, data, steps),
                partial(vlm_answering, base, adapter, questions),
                partial(first_answer, base, adapter, questions[0]["image_path"]),
                partial(pairs_written, data / "train", Path(folder)),
            ]
        results = [compare(make(), pairs) for make in measures]
    if output:
        write_json(output, {"machine": state, "results": results})


if __name__ == "__main__":
    run_commands(run)
