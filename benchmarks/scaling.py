"""How training's cost grows, and how much of the machine it uses: `python -m benchmarks.scaling run`.

Whole steps of the VLM's LoRA training (forward, backward, clipped gradients, AdamW) on views of `train` with the
embedded base. The matrix rate is measured in the same run, by products of large float32 matrices.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from homework.labels.eval_sets import split_scenes
from homework.labels.questions import qa_pairs
from homework.labels.rows import DATA_DIR
from homework.labels.scene import VIEW_SIZE
from homework.models.images import load_views, normalise
from homework.models.loading import DEFAULT_BASE, load_base
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.vision import ROWS, STRIDE
from homework.training.lora import add_lora
from homework.training.packing import PackedTrainingModule, collate, pack
from homework.training.trainer import use_all_cores
from homework.utils.cli import run as run_commands
from homework.utils.io import atomic_write
from homework.utils.parallel import available_cores

from .throughput import machine

RANK, BATCH, SIDE = 16, 32, 2048
VIEWS = (4, 8, 16, 32, 64)
QUESTIONS = (1, 2, 4, 8, 16)
WIDTHS = (100, 150, 300, 450)  # pixels of the view, which is repeated


@dataclass(frozen=True)
class Work:
    """Views [n, 100, 150, 3] and their questions; a model to train, and its tokens."""

    views: torch.Tensor
    pairs: list[list[tuple[str, str, float]]]
    module: nn.Module
    tokens: PromptTokens

    def batch(self, size: int = BATCH, questions: int | None = None, width: int = VIEW_SIZE[0]) -> dict:
        """A batch of the first `size` views with `questions` each (all without), of another width."""
        pixels = normalise(self.views[:size].repeat(1, 1, -(-width // VIEW_SIZE[0]), 1)[:, :, :width])
        asked = [(pairs * max(QUESTIONS))[:questions] if questions else pairs for pairs in self.pairs[:size]]
        return collate([pack(self.tokens, pairs) for pairs in asked], pixels[:, None], pad_id=2)


def cells(width: int) -> int:
    """How many cells, beside the fovea's, the tower sees a view of that width in."""
    return ROWS * -(-width // STRIDE)


def prepare(data: Path) -> Work:
    """The embedded base with LoRA, and views of train."""
    scenes = split_scenes(data, "train")
    images = sorted(scenes)[:: max(1, len(scenes) // max(VIEWS))][: max(VIEWS)]
    views = torch.from_numpy(load_views([data / image for image in images]).copy())
    pairs = [[(question, answer, 1.0) for question, answer in qa_pairs(scenes[image])] for image in images]
    torch.manual_seed(0)
    model, processor = load_base(DEFAULT_BASE)
    module = PackedTrainingModule(add_lora(model, RANK, DEFAULT_BASE)).train()
    return Work(views, pairs, module, PromptTokens(processor))


def step_of(work: Work, batch: dict) -> Callable[[], None]:
    """A training step on one batch."""
    parameters = [p for p in work.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=True)

    def step() -> None:
        work.module(**batch)["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(work: Callable[[], None], repetitions: int) -> float:
    """The median time, after one run without the clock."""
    work()
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matrix_rate(repetitions: int) -> float:
    """Floating point operations a second of a product of two float32 matrices of SIDE x SIDE."""
    a, b = torch.randn(2, SIDE, SIDE)
    return 2 * SIDE**3 / seconds(lambda: a @ b, repetitions)


def operations(step: Callable[[], None]) -> int:
    """Floating point operations of a step's matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def growth(work: Work, repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """(amount, seconds of a step) by what grows."""
    timed = lambda **changes: seconds(step_of(work, work.batch(**changes)), repetitions)
    found = {
        "views in a batch": [(size, timed(size=size)) for size in VIEWS],
        f"questions a view, {BATCH} views": [(number, timed(questions=number)) for number in QUESTIONS],
        f"cells of a view, {BATCH} views": [(cells(width), timed(width=width)) for width in WIDTHS],
    }
    cores = available_cores()
    by_cores = []
    for number in sorted({1, 2, 4, 8, 16, cores} & set(range(1, cores + 1))):
        torch.set_num_threads(number)
        by_cores.append((number, timed()))
    torch.set_num_threads(cores)
    return found | {f"cores, {BATCH} views": by_cores}


def plot(found: dict[str, list[tuple[float, float]]], file: Path) -> None:
    """One plot a measure, as SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o")
        axes.set(xlabel=name, ylabel="seconds a step", ylim=(0, None), xlim=(0, None))
        axes.grid(alpha=0.3)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def run(*, data: Path = DATA_DIR, repetitions: int = 5, output: Path = Path("docs/scaling.svg")) -> None:
    """Print and plot how a training step's time grows with views, questions, cells of a view and cores.

    Args:
        data: the data folder
        repetitions: how often each is timed; the median counts
        output: where the plot goes
    """
    use_all_cores()
    for name, value in machine().items():
        print(f"{name.replace('_', ' '):14}{value}")
    work = prepare(data)
    step = step_of(work, work.batch())
    rate, needed, taken = matrix_rate(repetitions), operations(step), seconds(step, repetitions)
    print(f"matrix rate: {rate / 1e9:.0f} GFLOP/s in float32")
    share = 100 * needed / taken / rate
    print(f"a step of {BATCH} views: {needed / 1e9:.0f} GFLOP in {taken:.2f} s, {share:.0f} % of that rate")
    found = growth(work, repetitions)
    for name, points in found.items():
        print(f"{name}: " + ", ".join(f"{amount:g}: {time_:.3f} s" for amount, time_ in points))
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    plot(found, output)
    print(output)


if __name__ == "__main__":
    run_commands(run)
