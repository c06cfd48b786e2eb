"""How much is generated, trained and answered a second on this machine: `python -m benchmarks.throughput`.

Each measure is the homework's own code on the embedded base, run once to warm up and then several times
with the clock on; the median is printed. Nothing is trained to the end, nothing in `data/` is written.
"""

import contextlib
import io
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from homework import clip, generate_captions, generate_qa
from homework.base_vlm import BaseVLM
from homework.finetune import DEFAULT_CHECKPOINT, PackedVQADataset, collate_views
from homework.labels.frame_info import read_scenes
from homework.labels.generate import generate_annotations
from homework.labels.rows import DATA_DIR, image_file, info_files
from homework.labels.scene import Scene
from homework.models.loading import DEFAULT_BASE, load_base, load_processor, pick_dtype
from homework.training.clip_dataset import MAX_CACHED_IMAGES, CachedFeatureDataset
from homework.training.lora import add_lora
from homework.training.packing import PackedTrainingModule
from homework.training.trainer import LengthGroupedBatches, use_all_cores
from homework.utils.cli import run
from homework.utils.errors import check_min
from homework.utils.io import write_json
from homework.utils.parallel import available_cores

WARM_UP = 1  # repetitions without the clock
STEPS = 4  # training steps a repetition: batches differ in how many questions they hold
ANSWERED = 120  # views a repetition of answering, as many as the official set has
KARTS = "adiumy amanda beastie emule gavroche gnu hexley kiki konqi nolok".split()
TRACKS = "abyss black_forest candela_city cocoa_temple cornfield_crossing".split()
MADE_FRAMES, VIEWS_A_FRAME = 100, 10

View = tuple[str, Scene]


def machine() -> dict:
    """What the numbers depend on."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def make_frames(split_dir: Path, seed: int = 0) -> None:
    """Frames of noise with random boxes, for machines without the course's data."""
    rng = np.random.default_rng(seed)
    split_dir.mkdir(parents=True)
    for frame in range(MADE_FRAMES):
        detections = []
        for view in range(VIEWS_A_FRAME):
            noise = rng.integers(0, 256, (100, 150, 3), dtype=np.uint8)
            Image.fromarray(noise).save(split_dir / f"{frame:05x}_{view:02d}_im.jpg")
            karts = rng.choice(len(KARTS), size=rng.integers(1, 5), replace=False)
            corners = rng.integers((0, 0), (500, 300), size=(len(karts), 2))
            detections.append(
                [
                    [1, int(k), int(x), int(y), int(x) + 100, int(y) + 100]
                    for k, (x, y) in zip(karts, corners, strict=True)
                ]
            )
        info = {"track": TRACKS[frame % len(TRACKS)], "karts": KARTS, "detections": detections}
        (split_dir / f"{frame:05x}_info.json").write_text(json.dumps(info))


def some_views(split_dir: Path, count: int) -> list[View]:
    """(image file, scene) of `count` views, evenly spread over the split and shuffled; all where there are fewer."""
    files = info_files(split_dir)
    step = max(1, len(files) * VIEWS_A_FRAME // count)
    views = ((image_file(file, view), scene) for file in files for view, scene in read_scenes(file))
    chosen = list(itertools.islice(views, 0, None, step))
    random.Random(0).shuffle(chosen)
    return chosen[:count]


def rows_of(views: list[View], rows: Callable) -> list[dict]:
    """The rows of a pair file for these views."""
    return [row for image, scene in views for row in rows(scene, image)]


def rates(work: Callable[[], int], repetitions: int, device: torch.device | None = None) -> list[float]:
    """Units a second of each timed repetition; `work` gives how many units it has done."""
    measured = []
    for repetition in range(WARM_UP + repetitions):
        start = time.perf_counter()
        units = work()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize()
        if repetition >= WARM_UP:
            measured.append(units / (time.perf_counter() - start))
    return measured


def pair_rates(split_dir: Path, folder: Path, repetitions: int) -> list[float]:
    """Question-answer pairs of the whole split, from its frames to the file, a second."""

    def work() -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            file = generate_annotations(split_dir, str(folder / "qa_pairs.json"), generate_qa.rows)
        with open(file) as stream:
            return sum(1 for _ in stream) - 2  # a pair a line, between brackets

    return rates(work, repetitions)


def training_rates(
    module: nn.Module, dataset, collate: Callable, batch_size: int, units: Callable[[dict], int], repetitions: int
) -> list[float]:
    """Units a second of whole training steps: batch, forward, backward, clipped gradients, AdamW."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    device = parameters[0].device
    bf16 = pick_dtype(device) == torch.bfloat16
    batches = _batches(dataset, batch_size)
    module.train()

    def work() -> int:
        done = 0
        for items in itertools.islice(batches, STEPS):
            batch = {name: value.to(device) for name, value in collate(items).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = module(**batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += units(batch)
        return done

    return rates(work, repetitions, device)


def _batches(dataset, size: int) -> Iterator[list]:
    """Batches as the training makes them, for ever; shuffled, so that every few are like the whole."""
    lengths = getattr(dataset, "lengths", None)
    order = list(LengthGroupedBatches(size, lengths, seed=0)) if lengths else list(range(len(dataset)))
    batches = [order[i : i + size] for i in range(0, len(order) - size + 1, size)] or [order]
    random.Random(0).shuffle(batches)
    for batch in itertools.cycle(batches):
        yield [dataset[i] for i in batch]


def vlm_training(views: list[View], data: Path, batch_size: int, rank: int, repetitions: int) -> list[float]:
    """Questions of the VLM's training a second."""
    rows = [{**row, "image_path": str(data / row["image_file"])} for row in rows_of(views, generate_qa.rows)]
    model, processor = load_base(DEFAULT_BASE)
    vlm = BaseVLM.from_parts(add_lora(model, rank, DEFAULT_BASE), processor)
    collate = partial(collate_views, processor=processor, tokens=vlm.tokens)
    # every answer ends with the end token, and nothing else is labelled with it
    asked = lambda batch: int((batch["labels"] == vlm.tokens.end).sum())
    return training_rates(
        PackedTrainingModule(vlm.model), PackedVQADataset(rows), collate, batch_size, asked, repetitions
    )


def looking(dataset: Dataset) -> float:
    """Seconds of a CLIP's look at all views of a training, by that at a dataset's; 0 where it looks at each step."""
    if not isinstance(dataset, CachedFeatureDataset):
        return 0.0
    begin, size = time.perf_counter(), clip.default_batch_size(dataset)
    for start in range(0, len(dataset), size):
        dataset.__getitems__(range(start, min(start + size, len(dataset))))
    return MAX_CACHED_IMAGES / len(dataset) * (time.perf_counter() - begin)


def whole_training_rate(dataset: Dataset, looking: float, rate: float) -> float:
    """Images a second of a whole training of CLIP: `looking` seconds, then steps of `rate` images a second."""
    images = clip.STEPS * clip.default_batch_size(dataset)
    return images / (looking + images / rate)


def clip_training(views: list[View], data: Path, rank: int, repetitions: int) -> list[float]:
    """Images of CLIP's training a second, each against all captions of the views."""
    captioned = clip.CaptionMatchingDataset(rows_of(views, generate_captions.rows), data)
    torch.manual_seed(0)
    module, tokenizer = clip.build_trainable(DEFAULT_BASE, rank), load_processor(DEFAULT_BASE).tokenizer
    dataset, collate = clip.training_set(captioned, module.base, tokenizer, seed=0)
    seconds, size = looking(dataset), clip.default_batch_size(dataset)
    measured = training_rates(module, dataset, collate, size, lambda batch: len(batch["truth"]), repetitions)
    return [whole_training_rate(dataset, seconds, rate) for rate in measured]


def answer_rates(checkpoint: Path, views: list[View], data: Path, alone: bool, repetitions: int) -> list[float]:
    """Questions answered a second, from the image files to the texts.

    Args:
        alone: ask one question a view, as the official set does, not all of them.
    """
    vlm = BaseVLM(checkpoint)
    size = min(ANSWERED, len(views))
    chunks = itertools.cycle(views[i : i + size] for i in range(0, len(views) - size + 1, size))

    def work() -> int:
        rows = []
        for number, view in enumerate(next(chunks)):
            asked = rows_of([view], generate_qa.rows)
            rows += [asked[number % len(asked)]] if alone else asked
        vlm.answer([data / row["image_file"] for row in rows], [row["question"] for row in rows])
        return len(rows)

    return rates(work, repetitions, vlm.device)


def speed(
    data: Path = DATA_DIR,
    repetitions: int = 5,
    batch_size: int = 32,
    rank: int = 16,
    json_: Path | None = None,
) -> None:
    """Print what this machine generates, trains and answers a second with the embedded base.

    Args:
        data: the data folder; without frames in its train split, frames of noise are made.
        repetitions: how often each is timed; the median is printed.
        batch_size: views a batch of the VLM's training.
        rank: of LoRA.
        json_: write everything into this file too.
    """
    check_min(1, repetitions=repetitions, batch_size=batch_size, rank=rank)
    use_all_cores()
    state = machine()
    checkpoint = DEFAULT_CHECKPOINT if (DEFAULT_CHECKPOINT / "adapter_config.json").exists() else Path(DEFAULT_BASE)
    with tempfile.TemporaryDirectory() as folder:
        real = any((data / "train").glob("*_info.json"))
        if not real:
            data = Path(folder) / "data"
            make_frames(data / "train")
        train = data / "train"
        views = some_views(train, (WARM_UP + repetitions) * STEPS * batch_size)
        state |= {
            "frames": f"{len(info_files(train)):,}, {'found' if real else 'of noise'}",
            "repetitions": repetitions,
            "lora_rank": rank,
            "answering": checkpoint.name,
        }
        for name, value in state.items():
            print(f"{name.replace('_', ' '):14}{value}")
        measures = {
            "pairs generated": ("the whole split", partial(pair_rates, train, Path(folder))),
            "questions trained": (f"{batch_size} views a batch", partial(vlm_training, views, data, batch_size, rank)),
            "questions answered": (
                f"{ANSWERED} views, all of each",
                partial(answer_rates, checkpoint, views, data, False),
            ),
            "questions answered alone": (
                f"{ANSWERED} views, one of each",
                partial(answer_rates, checkpoint, views, data, True),
            ),
            "CLIP images trained": (
                "a training as it is by default",
                partial(clip_training, views, data, rank),
            ),
        }
        results = {}
        print(f"\n{'a second':26}{'median':>10}{'lowest':>10}{'highest':>10}")
        for name, (setting, measure) in measures.items():
            measured = measure(repetitions)
            results[name] = {"setting": setting, "median": statistics.median(measured), "all": measured}
            numbers = (statistics.median(measured), min(measured), max(measured))
            print(f"{name:26}{''.join(f'{number:10,.0f}' for number in numbers)}   {setting}", flush=True)
    if json_:
        write_json(json_, {"machine": state, "a_second": results})


if __name__ == "__main__":
    run(speed)
