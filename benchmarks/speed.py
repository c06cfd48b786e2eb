"""How much is generated, trained and answered a second on this machine: `python -m benchmarks.speed`.

Each measure is the homework's own code on the embedded base, run a few times to warm up and then several
times with the clock on; the median is printed. Nothing is trained to the end, nothing in `data/` is written.
"""

import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import sys
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

from homework import clip, generate_captions, generate_qa
from homework.base_vlm import BaseVLM
from homework.checkpoint import EMBEDDED_BASE, add_lora, load_base
from homework.cli import run
from homework.data import DATA_DIR
from homework.errors import write_json
from homework.finetune import SHIPPED, PackedViews, collate_views
from homework.packing import PackedLM
from homework.pairs import write_split
from homework.scene import Scene, image_file, info_files, scenes
from homework.training import use_all_cores

WARM_UP = 2
KARTS = "adiumy amanda beastie emule gavroche gnu hexley kiki konqi nolok".split()
TRACKS = "abyss black_forest candela_city cocoa_temple cornfield_crossing".split()
MADE_FRAMES, VIEWS_A_FRAME = 100, 10

View = tuple[str, Scene]


def machine() -> dict:
    """What the numbers depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
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
            detections.append([[1, int(k), int(x), int(y), int(x) + 100, int(y) + 100] for k, (x, y) in zip(karts, corners, strict=True)])
        info = {"track": TRACKS[frame % len(TRACKS)], "karts": KARTS, "detections": detections}
        (split_dir / f"{frame:05x}_info.json").write_text(json.dumps(info))


def some_views(split_dir: Path, count: int) -> list[View]:
    """(image file, scene) of `count` views, evenly spread over the split; all where there are fewer."""
    files = info_files(split_dir)
    step = max(1, len(files) * VIEWS_A_FRAME // count)
    views = ((image_file(file, view), scene) for file in files for view, scene in scenes(file))
    return list(itertools.islice(views, 0, None, step))[:count]


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
            file = write_split(split_dir, str(folder / "qa_pairs.json"), generate_qa.rows)
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
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    batches = _batches(dataset, batch_size)
    module.train()

    def work() -> int:
        batch = {name: value.to(device) for name, value in collate(next(batches)).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = module(**batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return units(batch)

    return rates(work, repetitions, device)


def _batches(dataset, size: int) -> Iterator[list]:
    """Batches of a dataset in order, from the start again where it ends."""
    order = itertools.cycle(range(len(dataset)))
    while True:
        yield [dataset[i] for i in itertools.islice(order, size)]


def vlm_training(views: list[View], data: Path, batch_size: int, rank: int, repetitions: int) -> list[float]:
    """Questions of the VLM's training a second."""
    rows = [{**row, "image_path": str(data / row["image_file"])} for row in rows_of(views, generate_qa.rows)]
    model, processor = load_base(EMBEDDED_BASE)
    vlm = BaseVLM.from_parts(add_lora(model, rank, EMBEDDED_BASE), processor)
    collate = partial(collate_views, processor=processor, tokens=vlm.tokens)
    # every answer ends with the end token, and nothing else is labelled with it
    asked = lambda batch: int((batch["labels"] == vlm.tokens.end).sum())
    return training_rates(PackedLM(vlm.model), PackedViews(rows), collate, batch_size, asked, repetitions)


def clip_training(views: list[View], data: Path, batch_size: int, rank: int, repetitions: int) -> list[float]:
    """Images of CLIP's training a second, each against all captions of the views."""
    dataset = clip.CaptionedViews(rows_of(views, generate_captions.rows), data)
    torch.manual_seed(0)
    model, tokenizer = clip._build(EMBEDDED_BASE)
    module = clip.ContrastiveCLIP(add_lora(model, rank, EMBEDDED_BASE))
    for name, parameter in model.named_parameters():  # the projections are trained whole, as in `clip.train`
        parameter.requires_grad_(parameter.requires_grad or not name.startswith(("vision_encoder.", "text_encoder.")))
    collate = partial(clip.collate_captioned, texts=clip.tokenize(dataset.captions, tokenizer))
    return training_rates(module, dataset, collate, batch_size, lambda batch: len(batch["truth"]), repetitions)


def answer_rates(checkpoint: Path, views: list[View], data: Path, size: int, alone: bool, repetitions: int) -> list[float]:
    """Questions answered a second, from the image files to the texts.

    Args:
        size: views a repetition.
        alone: ask one question a view, as the official set does, not all of them.
    """
    vlm = BaseVLM(checkpoint)
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
    repetitions: int = 8,
    batch_size: int = 32,
    clip_batch_size: int = 64,
    rank: int = 16,
    json: Path | None = None,
) -> None:
    """Print what this machine generates, trains and answers a second with the embedded base.

    Args:
        data: the data folder; without frames in its train split, frames of noise are made.
        repetitions: how many are timed, after two that aren't.
        batch_size: views a batch of the VLM's training, and views asked about at once.
        clip_batch_size: views a batch of CLIP's training.
        rank: of LoRA.
        json: write everything into this file too.
    """
    use_all_cores()
    state = machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        real = any((data / "train").glob("*_info.json"))
        if not real:
            data = folder / "data"
            make_frames(data / "train")
        checkpoint = SHIPPED if (SHIPPED / "adapter_config.json").exists() else Path(EMBEDDED_BASE)
        views = some_views(data / "train", (WARM_UP + repetitions) * max(batch_size, clip_batch_size))
        frames = f"{'the course' if real else 'made'} frames: {len(info_files(data / 'train')):,}"
        state |= {"frames": frames, "repetitions": repetitions, "lora_rank": rank, "answers_of": checkpoint.name}
        for name, value in state.items():
            print(f"{name.replace('_', ' '):14}{value}")
        per_view = f"{batch_size} views a batch"
        measures = {
            "pairs generated": ("whole split", lambda: pair_rates(data / "train", folder, min(3, repetitions))),
            "questions trained": (per_view, lambda: vlm_training(views, data, batch_size, rank, repetitions)),
            "questions answered": (
                f"{batch_size} views at once, all questions",
                lambda: answer_rates(checkpoint, views, data, batch_size, False, repetitions),
            ),
            "questions answered, one a view": (
                f"{batch_size} views at once",
                lambda: answer_rates(checkpoint, views, data, batch_size, True, repetitions),
            ),
            "CLIP images trained": (
                f"{clip_batch_size} views a batch",
                lambda: clip_training(views, data, clip_batch_size, rank, repetitions),
            ),
        }
        print(f"\n{'a second':32}{'median':>10}{'lowest':>10}{'highest':>10}")
        results = {}
        for name, (setting, measure) in measures.items():
            measured = measure()
            results[name] = {"setting": setting, "median": statistics.median(measured), "all": measured}
            numbers = "".join(f"{value:10,.0f}" for value in (statistics.median(measured), min(measured), max(measured)))
            print(f"{name:32}{numbers}   {setting}", flush=True)
    if json:
        write_json(json, {"machine": state, "a_second": results})


if __name__ == "__main__":
    if sys.argv[1:2] != ["speed"]:
        sys.argv.insert(1, "speed")  # the only command, so its name may be left out
    run(speed)
