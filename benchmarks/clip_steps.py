"""How many steps CLIP needs to what the public pipeline ends with: `python -m benchmarks.clip_steps run`.

Both train from the same base with the same optimizer, learning rate and rank of LoRA, which the public pipeline puts on
both encoders and ours on the text's alone (see `homework.clip.with_lora`); each has batches of its own size. The public
one goes to its end; ours goes until it answers as many questions right. The clock stands while questions are asked.
"""

import time
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

from homework import clip, generate_captions
from homework.labels.eval_sets import split_scenes
from homework.labels.rows import DATA_DIR, add_image_paths
from homework.models.loading import DEFAULT_BASE, load_processor
from homework.training.trainer import use_all_cores
from homework.utils.cli import run as run_commands

from .throughput import machine
from .vs_baseline import CLIP_BATCH, our_clip, public_clip, train

ASKED_AT = (5, 10, 20, 30, 40, 60, 80, 100, 150, 200, 250)  # steps, and the last


class Watch(TrainerCallback):
    """Asks multiple-choice questions now and then; ends the training once enough are answered right.

    `found` holds (step, seconds of training, accuracy in percent).
    """

    def __init__(self, name: str, model: nn.Module, tokenizer, rows: list[dict], enough: float):
        self.name, self.model, self.tokenizer, self.rows, self.enough = name, model, tokenizer, rows, enough
        self.found: list[tuple[int, float, float]] = []
        self.seconds, self.begin = 0.0, time.perf_counter()

    def on_train_begin(self, *_, **__) -> None:
        """Called by the Trainer."""
        self.begin = time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        """Called by the Trainer."""
        if state.global_step not in ASKED_AT and state.global_step != state.max_steps:
            return
        self.seconds += time.perf_counter() - self.begin
        right, asked = clip.score(self.rows, clip.predict(self.model, self.tokenizer, self.rows))
        accuracy = 100 * right.total() / asked.total()
        self.found.append((state.global_step, self.seconds, accuracy))
        print(f"{self.name:10}{state.global_step:6}{self.seconds:8.0f} s{accuracy:8.1f}", flush=True)
        control.should_training_stop = accuracy >= self.enough
        self.begin = time.perf_counter()


def run(
    *,
    data: Path = DATA_DIR,
    base: str = DEFAULT_BASE,
    steps: int = 300,
    questions: int = 500,
    asked: Path = Path("runs/sample"),
) -> None:
    """Print the accuracy of both CLIPs by step, and how much sooner ours has what the public one ends with.

    Args:
        data: the data folder, whose train is trained on
        base: folder or hub name of an Idefics3 model
        steps: of the public pipeline
        questions: how many are asked each time, each with one true candidate
        asked: the data folder whose valid they are about, e.g. by `supertux use-sample --data runs/sample`
    """
    use_all_cores()
    print("\n".join(f"{name.replace('_', ' '):14}{value}" for name, value in machine().items()))
    scenes = sorted(split_scenes(data, "train").items())
    rows = add_image_paths([row for image, scene in scenes for row in generate_captions.rows(scene, image)], data)
    choices, tokenizer = clip.generate_eval_rows("valid", questions, asked), load_processor(base).tokenizer
    enough, found = 101.0, []
    for name, make in (("public", public_clip), ("ours", lambda *parts: our_clip(*parts, data))):
        torch.manual_seed(0)
        module, dataset, collate = make(base, rows)
        watch = Watch(name, module.clip if name == "public" else module.base, tokenizer, choices, enough)
        batch_size = CLIP_BATCH if name == "public" else clip.default_batch_size(dataset)
        train(module, dataset, collate, batch_size, steps, watch, clip.LEARNING_RATE)
        enough = max(accuracy for *_, accuracy in watch.found)
        found.append(next(row for row in watch.found if row[2] >= enough))
    (public_step, public_seconds, public), (our_step, our_seconds, ours) = found
    print(f"{public:.1f} % after {public_step} steps, {public_seconds:.0f} s; ", end="")
    print(f"ours {ours:.1f} % after {our_step}, {our_seconds:.0f} s: ", end="")
    print(f"{public_step / our_step:.1f} times fewer steps, {public_seconds / our_seconds:.1f} times less time")


if __name__ == "__main__":
    run_commands(run)
