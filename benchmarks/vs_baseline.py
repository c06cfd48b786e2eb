"""Compare this repo with the baseline pipeline, alternating on one machine: `python -m benchmarks.vs_baseline`.

Both run through the same training loop, `homework.training.trainer.fit`, and are timed from one step to the next.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from homework import generate_captions, generate_qa
from homework.labels.generate import generate_annotations
from homework.labels.rows import DATA_DIR
from homework.utils.cli import run
from homework.utils.errors import check_min
from homework.utils.images import open_image

from . import baseline, throughput

CLIP_BATCH_SIZE = 64  # of the baseline
NUM_TRAIN_VIEWS = 2000
FIRST_ANSWER_SCRIPT = """
from homework import BaseVLM
print(BaseVLM({adapter!r}).answer([{image!r}], ["What track is this?"]), flush=True)
"""
BASELINE_FIRST_ANSWER_SCRIPT = """
from peft import PeftModel
from transformers import Trainer, TrainingArguments
from benchmarks import baseline
model, processor = baseline.load_trained({base!r}, {adapter!r})
row = {{"image_path": {image!r}, "question": "What track is this?"}}
print(baseline.generate_answers(model, processor, [row]), flush=True)
"""


@dataclass(frozen=True)
class Comparison:
    """Two implementations of the same work; each returns its units per second."""

    name: str
    baseline: Callable[[], float]
    ours: Callable[[], float]


def compare(comparison: Comparison, repetitions: int) -> dict:
    """Run both sides alternately, and print the median rates and the median ratio."""
    rates = [(comparison.baseline(), comparison.ours()) for _ in range(repetitions)]
    theirs, ours = (median(side) for side in zip(*rates, strict=True))
    ratio = median(b / a for a, b in rates)
    print(f"{comparison.name:64}{theirs:10.3g}{ours:10.3g}{ratio:8.1f}", flush=True)
    return {"baseline": theirs, "ours": ours, "ratio": ratio}


def train_baseline(make: Callable, encode: Callable, base: str, rows: list, batch_size: int, steps: int) -> float:
    """Train a model of the baseline's; return the median of its samples per second."""
    module, processor = make(base, throughput.LORA_RANK)
    collate = partial(baseline.encode_batch, encode=encode, processor=processor)
    return median(throughput.training_rates(module, rows, collate, batch_size, steps, lambda _: batch_size))


def compare_vlm_training(base: str, rows: list[dict], cache_dir: Path, batch_size: int, steps: int) -> Comparison:
    """Compare the questions trained per second; a batch has `batch_size` questions of the baseline's, views of ours."""
    make_trainable, encode = baseline.make_trainable_vlm, baseline.encode_question
    theirs = partial(train_baseline, make_trainable, encode, base, rows, batch_size, steps)
    ours = lambda: median(throughput.vlm_training_rates(base, rows, cache_dir, batch_size, steps))
    return Comparison(f"questions trained, {Path(base).name}", theirs, ours)


def compare_vlm_answers(base: str, adapter: Path, rows: list[dict]) -> Comparison:
    """Compare the questions answered per second, from image files to texts; the models are loaded once."""
    from homework.base_vlm import BaseVLM

    model, processor = baseline.load_trained(base, adapter)
    vlm = BaseVLM(adapter)

    def answer_baseline() -> float:
        begin = time.perf_counter()
        baseline.generate_answers(model, processor, rows)
        return len(rows) / (time.perf_counter() - begin)

    expected = baseline.generate_answers(model, processor, rows, open_image)
    is_same = expected == vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    name = f"questions answered ({'the same' if is_same else 'OTHER'} answers on the same pixels)"
    return Comparison(name, answer_baseline, lambda: throughput.answer_rate(vlm, rows))


def compare_clip_training(base: str, rows: list[dict], data: Path, steps: int) -> Comparison:
    """Compare the images trained per second; ours are those of a full training, feature caching included."""
    make_trainable, encode = baseline.make_trainable_clip, baseline.encode_caption
    theirs = partial(train_baseline, make_trainable, encode, base, rows, CLIP_BATCH_SIZE, steps)
    ours = lambda: median(throughput.clip_training_rates(base, rows, data, steps))
    return Comparison("CLIP images trained", theirs, ours)


def compare_pair_generation(split_dir: Path) -> Comparison:
    """Compare the QA pairs generated and written per second."""
    theirs = partial(throughput.generation_rate, baseline.write_pairs, split_dir)
    ours = partial(throughput.generation_rate, generate_annotations, split_dir)
    return Comparison("QA pairs generated and written", theirs, ours)


def compare_startup(base: str, adapter: Path, image: str) -> Comparison:
    """Compare the starts per second, from the start of the interpreter to the first answer."""

    def start(script: str) -> float:
        begin = time.perf_counter()
        command = [sys.executable, "-c", script.format(base=base, adapter=str(adapter), image=image)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            answer, seconds = process.stdout.readline(), time.perf_counter() - begin
        if not answer or process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return 1 / seconds

    theirs = partial(start, BASELINE_FIRST_ANSWER_SCRIPT)
    return Comparison("starts to the first answer", theirs, partial(start, FIRST_ANSWER_SCRIPT))


def main(
    data: Path = DATA_DIR,
    base: str | None = None,
    repetitions: int = 5,
    batch_size: int = 32,
    steps: int = 4,
    views: int = 60,
) -> None:
    """Print how many times faster than the baseline training, inference, data generation and startup are.

    With a base that the shipped adapter does not fit, such as one of `python -m benchmarks.random_smolvlm`, only the
    VLM's training is timed.

    Args:
        data: data folder.
        base: folder or hub name of a base model; the bundled one by default.
        repetitions: how often both sides are timed.
        batch_size: questions per step of the baseline's VLM training, views per step of ours.
        steps: timed training steps per repetition.
        views: number of views in `valid` whose questions are answered.
    """
    check_min(1, repetitions=repetitions, batch_size=batch_size, steps=steps, views=views)
    from homework.models.loading import DEFAULT_BASE, default_checkpoint, resolve_base
    from homework.models.lora_weights import read_adapter_base
    from homework.training.trainer import use_all_cores

    base, adapter = base or DEFAULT_BASE, default_checkpoint("vlm")
    use_all_cores()
    throughput.print_system_info()
    print(f"{'per second':64}{'baseline':>10}{'ours':>10}{'ratio':>8}")
    train = throughput.sample_views(data, "train", NUM_TRAIN_VIEWS)
    pairs = throughput.annotate(train, generate_qa.rows, data)
    captions = throughput.annotate(train, generate_captions.rows, data)
    questions = throughput.annotate(throughput.sample_views(data, "valid", views), generate_qa.rows, data)
    comparisons = [partial(compare_vlm_training, base, pairs, data / ".cache", batch_size, steps)]
    if resolve_base(read_adapter_base(adapter)) == resolve_base(base):
        comparisons += [
            partial(compare_clip_training, base, captions, data, steps),
            partial(compare_vlm_answers, base, adapter, questions),
            partial(compare_startup, base, adapter, questions[0]["image_path"]),
            partial(compare_pair_generation, data / "train"),
        ]
    for make in comparisons:
        compare(make(), repetitions)


if __name__ == "__main__":
    run(main)
