"""Measure this machine's throughput of data generation, training and inference: `python -m benchmarks.throughput`.

All rates are those of the homework's own code with the bundled base model, after a warm-up; training is the real
training loop, `homework.training.trainer.fit`. Nothing is written to `data/` but its pixel cache.
"""

import itertools
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from homework import generate_captions, generate_qa
from homework.labels.eval_sets import split_scenes
from homework.labels.generate import generate_annotations
from homework.labels.rows import DATA_DIR, add_image_paths
from homework.labels.scene import Scene
from homework.utils.cli import run
from homework.utils.errors import check_min
from homework.utils.io import read_json
from homework.utils.parallel import available_cores
from homework.utils.progress import suppress_output

LORA_RANK, LEARNING_RATE = 16, 1e-4
FEATURE_BATCH_SIZE = 128
NUM_ANSWER_VIEWS = 120  # as many views as the official evaluation asks about


def print_system_info() -> None:
    """Print what the numbers depend on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{available_cores()} cores, {gpu}, Python {platform.python_version()}, torch {torch.__version__}")


def sample_views(data: Path, split: str, count: int) -> list[tuple[str, Scene]]:
    """Return up to `count` (image file, scene) of a split, evenly spaced and shuffled."""
    views = sorted(split_scenes(data, split).items())
    sample = views[:: max(1, len(views) // count)][:count]
    random.Random(0).shuffle(sample)
    return sample


def annotate(views: list[tuple[str, Scene]], rows: Callable, data: Path) -> list[dict]:
    """Return the rows of an annotation file for some views, with image paths."""
    return add_image_paths([row for image, scene in views for row in rows(scene, image)], data)


class StepTimer:
    """A forward pre-hook that times training steps of `count` samples, from one forward pass to the next."""

    def __init__(self, count: Callable[[dict], int]):
        self.count, self.starts, self.counts = count, [], []

    def __call__(self, module, args, batch: dict) -> None:
        import torch

        self.counts.append(self.count(batch))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    def rates(self) -> list[float]:
        """Return the samples per second of each step but the first, a warm-up, and the last, which has no end."""
        steps = zip(self.counts, itertools.pairwise(self.starts), strict=False)
        return [count / (end - start) for count, (start, end) in steps][1:]


def training_rates(module, dataset, collate: Callable, batch_size: int, steps: int, count: Callable) -> list[float]:
    """Train with `fit`; return the samples, `count(batch)` per batch, per second of each of `steps` steps."""
    from homework.training.trainer import TrainingConfig, fit

    timer = StepTimer(count)
    hook = module.register_forward_pre_hook(timer, with_kwargs=True)
    config = TrainingConfig(
        "benchmark", "train", steps + 2, batch_size, LEARNING_RATE, LORA_RANK, 0, len(dataset), "benchmark"
    )
    with tempfile.TemporaryDirectory() as folder, suppress_output():
        fit(module, dataset, collate, config, Path(folder) / "run", Path(folder) / "adapter", dict)
    hook.remove()
    return timer.rates()


def vlm_training_rates(base: str, rows: list[dict], cache_dir: Path, batch_size: int, steps: int) -> list[float]:
    """Return the questions per second of each step of VLM training, `batch_size` views per step."""
    from homework.base_vlm import BaseVLM
    from homework.models.loading import load_base
    from homework.training.lora import add_lora
    from homework.training.packing import PackedTrainingModule, PackedVQADataset, collate_views

    model, processor = load_base(base)
    vlm = BaseVLM.from_parts(add_lora(model, LORA_RANK, base), processor)
    collate = partial(collate_views, processor=processor, tokens=vlm.tokens)
    # each answer ends with the end token, and no other label is one
    count = lambda batch: int((batch["labels"] == vlm.tokens.end).sum())
    dataset = PackedVQADataset(rows, cache_dir)
    return training_rates(PackedTrainingModule(vlm.model), dataset, collate, batch_size, steps, count)


def clip_training_rates(base: str, rows: list[dict], data: Path, steps: int) -> list[float]:
    """Return the images per second of a full CLIP training, feature caching included, by each timed step."""
    import torch

    from homework.clip import DEFAULT_STEPS, default_batch_size
    from homework.models.clip import CLIP
    from homework.models.loading import load_base
    from homework.training import clip_dataset

    torch.manual_seed(0)
    model, processor = load_base(base)
    clip = clip_dataset.add_lora_to_clip(CLIP.from_vlm(model), LORA_RANK, base)
    module = clip_dataset.CLIPTrainingModule(clip)
    captioned = clip_dataset.CaptionMatchingDataset(rows, data, data / ".cache")
    dataset, collate = clip_dataset.training_set(captioned, module.base, processor.tokenizer, seed=0)
    cache_seconds, batch_size = feature_cache_seconds(dataset), default_batch_size(module.base)
    num_images = DEFAULT_STEPS * batch_size
    rates = training_rates(module, dataset, collate, batch_size, steps, lambda _: batch_size)
    return [num_images / (cache_seconds + num_images / rate) for rate in rates]


def feature_cache_seconds(dataset) -> float:
    """Cache a dataset's image features; estimate the seconds for a full run, 0 if features are not cached."""
    from homework.training.clip_dataset import MAX_CACHED_IMAGES, CachedFeatureDataset

    if not isinstance(dataset, CachedFeatureDataset):
        return 0.0
    begin = time.perf_counter()
    for start in range(0, len(dataset), FEATURE_BATCH_SIZE):
        dataset.__getitems__(range(start, min(start + FEATURE_BATCH_SIZE, len(dataset))))
    return MAX_CACHED_IMAGES / len(dataset) * (time.perf_counter() - begin)


def answer_rate(vlm, rows: list[dict]) -> float:
    """Return the questions answered per second, from image files to texts."""
    begin = time.perf_counter()
    vlm.answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    return len(rows) / (time.perf_counter() - begin)


def generation_rate(write: Callable, split_dir: Path) -> float:
    """Return the QA pairs per second that `write` makes of a split's frames and writes to a file."""
    with tempfile.TemporaryDirectory() as folder, suppress_output():
        begin = time.perf_counter()
        file = write(split_dir, str(Path(folder) / "qa_pairs.json"), generate_qa.rows)
        seconds = time.perf_counter() - begin
        return len(read_json(file)) / seconds


def main(data: Path = DATA_DIR, repetitions: int = 5, batch_size: int = 32, steps: int = 20) -> None:
    """Print the throughput of data generation, training and inference with the bundled base model.

    Args:
        data: data folder with frames in its `train` split.
        repetitions: timed repetitions of generation and inference.
        batch_size: views per step of the VLM's training.
        steps: timed training steps.
    """
    check_min(1, repetitions=repetitions, batch_size=batch_size, steps=steps)
    from homework import load_vlm
    from homework.models.loading import DEFAULT_BASE
    from homework.training.trainer import use_all_cores

    use_all_cores()
    print_system_info()
    views = sample_views(data, "train", batch_size * (steps + 2))
    pairs, captions = annotate(views, generate_qa.rows, data), annotate(views, generate_captions.rows, data)
    answered = annotate(views[:NUM_ANSWER_VIEWS], generate_qa.rows, data)
    generate = partial(generation_rate, generate_annotations, data / "train")
    answer = partial(answer_rate, load_vlm(), answered)
    runs = range(repetitions + 1)  # the first is a warm-up
    measures = {
        "QA pairs generated": lambda: [generate() for _ in runs][1:],
        "questions trained": partial(vlm_training_rates, DEFAULT_BASE, pairs, data / ".cache", batch_size, steps),
        "questions answered": lambda: [answer() for _ in runs][1:],
        "CLIP images trained": partial(clip_training_rates, DEFAULT_BASE, captions, data, steps),
    }
    print(f"\n{'per second':36}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, measure in measures.items():
        rates = measure()
        print(f"{name:36}{statistics.median(rates):10,.0f}{min(rates):10,.0f}{max(rates):10,.0f}", flush=True)


if __name__ == "__main__":
    run(main)
