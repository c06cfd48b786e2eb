"""Build the embedded base from nothing, in resumable stages:

python -m pretrain processor --gguf FILE   # tokenizer, chat template, image processor
python -m pretrain fovea                   # the fovea alone, on small karts
python -m pretrain dense                   # the tower, on boxes and scenes
python -m pretrain average --parts A,B     # the mean of towers that went different ways
python -m pretrain read                    # the text model, on imagined scenes
python -m pretrain text                    # captions and questions through the text model
python -m pretrain export                  # -> homework/weights/tux_nano, and pretrain/stage.safetensors to go on from
python -m pretrain measure --split valid   # what the tower itself sees, without the text model
python -m pretrain answers --split valid   # what the base answers in the words that it was taught, without LoRA
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor

from homework.base_vlm import BaseVLM
from homework.labels.eval_sets import split_scenes
from homework.labels.questions import classify_caption
from homework.models.clip import class_prior_logits
from homework.models.loading import DEFAULT_BASE
from homework.models.prompts import PromptTokens
from homework.models.tux_nano.modeling_hf import TuxNanoForConditionalGeneration
from homework.training.trainer import use_all_cores
from homework.utils.cli import run
from homework.utils.errors import InputError
from homework.utils.io import atomic_write

from .assemble import fold_batch_norm, make_config, make_processor, make_tokenizer
from .checkpoints import SAVED, VISION, VisionStage, begin_text_with, begin_with, saved_vision
from .dataset import CROWDED, PASTE, Frames, training_frames
from .dense_heads import dense_loss, forward
from .eval_text import asked_as_taught, table
from .eval_vision import (
    by_nearness,
    cells_by_size,
    ego_by_kart,
    ego_by_place,
    evaluate_dense,
    image_logits,
    relation_by_karts,
    stored_at,
)
from .foveal_pretraining import FoveaStage
from .init_name_attention import look_up_names
from .text_stage import TextStage
from .trainer import load_checkpoint, save_checkpoint, train_stage
from .weight_averaging import mean_of, measure_norms


def _text_stage(start: str | None = None, base: str = DEFAULT_BASE) -> TextStage:
    """A new one with a base's processor, or with another's text model and connector."""
    stage = TextStage(VISION, PromptTokens(AutoProcessor.from_pretrained(base)))
    if start:
        begin_text_with(stage, Path(start))
    return stage


def processor(*, gguf: str, out: str = DEFAULT_BASE) -> None:
    """Write the tokenizer, chat template and image processor.

    Args:
        gguf: a GGUF file of SmolLM2, for its vocabulary.
        out: folder of the base.
    """
    make_processor(make_tokenizer(Path(gguf))).save_pretrained(out)


def fovea(
    data: str = "data",
    splits: str = "train",
    out: str = "runs/nano",
    steps: int = 2000,
    batch: int = 64,
    seed: int = 0,
    start: str | None = None,
) -> None:
    """Train the fovea's convolutions to name small karts, in windows that are full of them.

    Args:
        data: the data folder.
        splits: folders of the data, with commas between them.
        out: where the checkpoint and the curve go.
        steps: how many batches.
        batch: windows a batch.
        seed: of weights, batches and augmentation.
        start: a tower to begin with instead of random weights: the saved stage, or the checkpoint of a run.
    """
    use_all_cores()
    torch.manual_seed(seed)
    stage = FoveaStage(VISION)
    if start:
        begin_with(stage, Path(start))
    frames, held_out = training_frames(data, splits), training_frames(data, splits, held_out=True)
    loss_of = lambda rng: stage.losses(*frames.windows(rng, batch))

    def evaluate() -> dict[str, float]:
        sizes = cells_by_size(image_logits(stage, held_out), held_out.scenes)
        return {f"cells {size}": round(100 * right / max(1, karts), 1) for size, (right, karts) in sizes.items()}

    train_stage(stage, loss_of, Path(out), "fovea", steps, 2e-3, seed=seed, evaluate=evaluate)


def dense(
    data: str = "data",
    splits: str = "train",
    out: str = "runs/nano",
    steps: int = 3700,
    batch: int = 64,
    seed: int = 0,
    start: str | None = None,
    paste: float = PASTE,
) -> None:
    """Train the tower on what the boxes say of each cell and each image; at last on views without added karts or zoom.

    Args:
        data: the data folder.
        splits: folders of the data, with commas between them, e.g. train,own; own+more takes turns as one.
        out: where the checkpoint and the curve go.
        steps: how many batches.
        batch: views a batch.
        seed: of weights, batches and augmentation.
        start: a tower to begin with instead of random weights: the saved stage, or the checkpoint of a run's stage
            (fovea.pt, dense.pt).
        paste: share of views whose ego kart is replaced by another view's.
    """
    use_all_cores()
    torch.manual_seed(seed)
    stage = VisionStage()
    if start:
        begin_with(stage, Path(start))
    frames, held_out = training_frames(data, splits), training_frames(data, splits, held_out=True)

    def loss_of(rng: np.random.Generator, **changes: float) -> dict[str, torch.Tensor]:
        pixels, targets, _ = frames.augmented(rng, batch, paste=paste, crowded=CROWDED, **changes)
        return dense_loss(forward(stage.tower, stage.heads, pixels)[0], targets)

    evaluate = lambda: evaluate_dense(image_logits(stage, held_out))
    train_stage(
        stage,
        loss_of,
        Path(out),
        "dense",
        steps,
        2e-3,
        seed=seed,
        loss_at_last=partial(loss_of, zoom=0, added=0),  # as many karts, and as sharp, as the game shows
        evaluate=evaluate,
    )


def average(*, parts: str, splits: str, data: str = "data", out: str = "runs/nano") -> None:
    """Take the mean of the weights of towers that were trained on from one tower, and measure its norms anew.

    Args:
        parts: checkpoints dense.pt of runs, with commas between them.
        splits: folders of the data to measure the norms by, with commas between them.
        data: the data folder.
        out: where the mean's checkpoint goes.
    """
    use_all_cores()
    path = Path(out) / "dense.pt"
    if path.exists():
        raise InputError(path, "is the checkpoint of a run", "give --out another folder, or move it away")
    stage = mean_of([saved_vision(Path(part)) for part in parts.split(",")])
    measure_norms(stage, training_frames(data, splits))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, 0, stage, {})


def measure(split: str = "valid", data: str = "data", start: str = str(SAVED), quality: int | None = None) -> None:
    """Print what the tower's heads know of a split, in percent: counts above 0, both halves of a relation.

    Then by what makes it hard, and, from the worst to the best, how often each kart is named where it is the ego kart.

    Args:
        split: folder of the data.
        data: the data folder.
        start: the saved stage, or the checkpoint dense.pt of a run.
        quality: of JPEG files, 1 to 100, to see what the tower knows of the views if they lose more than they have.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise InputError("--quality", str(quality), "give 1 to 100")
    use_all_cores()
    stage = saved_vision(Path(start)).eval()
    frames = Frames(Path(data), [split])
    if quality is not None:
        frames.views = stored_at(quality, frames.views)
    answers = list(image_logits(stage, frames))
    for name, value in evaluate_dense(answers).items():
        print(f"{name.removeprefix('accuracy_'):16}{value:6.1f}")
    karts = ego_by_kart(answers)
    print("karts named by the cells at their centres, by their shorter side:")
    for size, (right, there) in cells_by_size(answers, frames.scenes).items():
        print(f"{size:16}{100 * right / max(1, there):6.1f} of {there:,} karts")
    print("ego by place:")
    for place, (right, views) in ego_by_place(answers, frames).items():
        print(f"{place:45}{100 * right / views:6.1f} of {views:,} views")
    for name, rows in by_nearness(answers, frames.scenes).items():
        print(f"{name} by whether a kart nearly counts, or only just:")
        for place, (right, views) in rows.items():
            print(f"{place:16}{100 * right / max(1, views):6.1f} of {views:,} views")
    print("relations by karts in the view:")
    for number, (right, asked) in relation_by_karts(answers, frames.scenes).items():
        print(f"{number:<16}{100 * right / asked:6.1f} of {asked:,} relations")
    print("ego by kart:")
    for kart, (right, views) in sorted(karts.items(), key=lambda row: row[1][0] / row[1][1]):
        print(f"{kart:16}{100 * right / views:6.1f} of {views:,} views")


def answers(split: str = "valid", data: str = "data", base: str = DEFAULT_BASE) -> None:
    """Ask a base about a split in the words that it was taught; print percent right by number of karts and kind.

    Args:
        split: folder of the data.
        data: the data folder.
        base: folder of the base.
    """
    use_all_cores()
    vlm = BaseVLM(base)
    vlm.show_progress = True
    print("\n".join(table(*asked_as_taught(vlm, split_scenes(data, split), Path(data)))))


def read(out: str = "runs/nano", steps: int = 800, seed: int = 0, start: str | None = None) -> None:
    """Train the text model and connector on imagined scenes: to look up the kart that a question names.

    Args:
        out: where the checkpoint and the curve go.
        steps: how many batches.
        seed: of weights and scenes.
        start: the checkpoint text.pt of another run, or a base's folder, to begin with its text model instead of random
            weights.
    """
    use_all_cores()
    torch.manual_seed(seed)
    stage = _text_stage(start)
    stage.weigh_facts()
    look_up_names(stage, seed)
    stage.doubts = False
    train_stage(stage, stage.imagined_loss, Path(out), "read", steps, 1e-3, seed=seed, warmup=50)


def text(
    data: str = "data",
    splits: str = "train",
    out: str = "runs/nano",
    steps: int = 800,
    batch: int = 64,
    seed: int = 0,
    start: str | None = None,
) -> None:
    """Train the text model and connector on captions and questions.

    Args:
        data: the data folder.
        splits: folders of the data, with commas between them.
        out: where the dense stage's checkpoint is and this one's goes.
        steps: how many batches.
        batch: views a batch.
        seed: of weights, batches and augmentation.
        start: the checkpoint text.pt of another run, or a base's folder, to begin with its text model instead of random
            weights.
    """
    use_all_cores()
    torch.manual_seed(seed)
    vision = saved_vision(Path(out) / "dense.pt")
    frames = training_frames(data, splits)
    stage = _text_stage(start)
    stage.take_over(vision.tower, vision.heads)
    stage.prior_logits = class_prior_logits(
        stage.truth(frames.scenes), [classify_caption(text) for text in stage.captions]
    )

    def loss_of(rng: np.random.Generator) -> dict[str, torch.Tensor]:
        pixels, _, scenes = frames.augmented(rng, batch, crowded=CROWDED)
        return stage.losses(pixels, scenes, rng, whole=pixels.shape[-1] == frames.views.shape[2])

    train_stage(stage, loss_of, Path(out), "text", steps, 1e-3, seed=seed, warmup=50)


def export(out: str = "runs/nano", base: str = DEFAULT_BASE) -> None:
    """Fold the batch norms, expand the vocabulary, and write the base in float16; save tower and heads too.

    Args:
        out: where the text stage's checkpoint is.
        base: folder of the base; its processor must be there.
    """
    stage = _text_stage(base=base)
    load_checkpoint(Path(out) / "text.pt", stage)
    tower = fold_batch_norm(stage.tower)
    model = TuxNanoForConditionalGeneration(make_config(tower.config)).eval()
    weights = {k: v for k, v in stage.model.state_dict().items() if ".vision_model." not in k}
    table = stage.vocabulary.expand(stage.model.get_input_embeddings())
    weights |= {"model.text_model.embed_tokens.weight": table, "lm_head.weight": table}
    weights |= {f"model.vision_model.{k}": v for k, v in tower.state_dict().items()}
    model.load_state_dict(weights)
    model.half().save_pretrained(base)
    # norms and biases stay in float32: they are small, and a variance may be below float16's range
    parts = {"tower": stage.tower.state_dict(), "heads": stage.heads.state_dict()}
    saved = {f"{part}.{k}": v.half() if v.ndim > 1 else v for part, state in parts.items() for k, v in state.items()}
    with atomic_write(SAVED) as temporary:
        save_file({k: v.contiguous() for k, v in saved.items()}, temporary)


def main() -> None:
    """Run the command line."""
    run(processor, fovea, dense, average, read, text, export, measure, answers)
