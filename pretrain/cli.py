"""Pretrain TuxNano from random weights, in resumable stages:

python -m pretrain processor --gguf FILE         # tokenizer, chat template, image processor
python -m pretrain fovea                         # foveal branch: windows of small karts
python -m pretrain dense                         # vision encoder: boxes and scenes
python -m pretrain average --checkpoints A B     # mean of the weights of several vision encoders
python -m pretrain read                          # text model and connector: synthetic scenes
python -m pretrain text                          # text model and connector: captions and questions
python -m pretrain export                        # write homework/weights/tux_nano and pretrain/stage.safetensors
python -m pretrain eval-vision --split valid     # accuracy of the vision encoder's heads
python -m pretrain eval-text --split valid       # accuracy of the base on paraphrased questions, without LoRA
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from homework.utils.cli import run
from homework.utils.errors import InputError, UsageError
from homework.utils.io import atomic_write

from . import BASE_DIR, SAVED_STAGE

if TYPE_CHECKING:  # imported inside the commands, since torch takes seconds
    from .text_stage import TextStage

RUN_DIR = "runs/pretrain"


def processor(*, gguf: str, output: str = str(BASE_DIR)) -> None:
    """Write the tokenizer, chat template and image processor.

    Args:
        gguf: a GGUF file of SmolLM2, which holds its vocabulary.
        output: folder of the base.
    """
    from .assemble import make_processor, make_tokenizer

    make_processor(make_tokenizer(Path(gguf))).save_pretrained(output)


def fovea(
    data: str = "data",
    splits: str = "train",
    run_dir: str = RUN_DIR,
    steps: int = 2000,
    batch_size: int = 64,
    seed: int = 0,
    init_from: str | None = None,
) -> None:
    """Train the foveal convolutions to name small karts, on windows that are full of them.

    Args:
        data: the data folder.
        splits: folders of the data, separated by commas.
        run_dir: folder of the checkpoint fovea.pt and the curve fovea.jsonl.
        steps: number of batches.
        batch_size: windows per batch.
        seed: of weights, batches and augmentation.
        init_from: a saved stage or a run's checkpoint to begin with, instead of random weights.
    """
    from .checkpoints import VISION_CONFIG, load_vision_weights
    from .dataset import load_training_data
    from .eval_vision import kart_accuracy_by_size, predict_views
    from .foveal_pretraining import FoveaStage
    from .trainer import train_stage

    _set_up(seed)
    stage = FoveaStage(VISION_CONFIG)
    if init_from:
        load_vision_weights(stage, Path(init_from))
    dataset, held_out = load_training_data(data, splits), load_training_data(data, splits, held_out=True)
    compute_losses = lambda rng: stage.losses(*dataset.sample_windows(rng, batch_size))

    def evaluate() -> dict[str, float]:
        sizes = kart_accuracy_by_size(predict_views(stage, held_out), held_out.scenes)
        return {f"cells {size}": round(100 * correct / max(1, karts), 1) for size, (correct, karts) in sizes.items()}

    train_stage(stage, compute_losses, Path(run_dir), "fovea", steps, 2e-3, seed=seed, evaluate=evaluate)


def dense(
    data: str = "data",
    splits: str = "train",
    run_dir: str = RUN_DIR,
    steps: int = 3700,
    batch_size: int = 64,
    seed: int = 0,
    init_from: str | None = None,
) -> None:
    """Pretrain the vision encoder with dense box supervision; no zoom and no added karts during cooldown.

    Args:
        data: the data folder.
        splits: folders of the data, separated by commas, drawn equally often; own+more is drawn as one.
        run_dir: folder of the checkpoint dense.pt and the curve dense.jsonl.
        steps: number of batches.
        batch_size: views per batch.
        seed: of weights, batches and augmentation.
        init_from: a saved stage or a run's checkpoint (fovea.pt, dense.pt) to begin with, instead of random weights.
    """
    from .augment import AUGMENT
    from .checkpoints import VisionStage, load_vision_weights
    from .dataset import load_training_data
    from .dense_heads import dense_loss, run_heads
    from .eval_vision import head_accuracy, predict_views
    from .trainer import train_stage

    _set_up(seed)
    stage = VisionStage()
    if init_from:
        load_vision_weights(stage, Path(init_from))
    dataset, held_out = load_training_data(data, splits), load_training_data(data, splits, held_out=True)

    def compute_losses(rng, config=AUGMENT):
        pixels, targets, _ = dataset.sample_batch(rng, batch_size, config)
        return dense_loss(run_heads(stage.tower, stage.heads, pixels)[0], targets)

    as_rendered = replace(AUGMENT, zoom_prob=0, add_far_karts_prob=0)  # as many karts, and as sharp, as the game shows
    train_stage(
        stage,
        compute_losses,
        Path(run_dir),
        "dense",
        steps,
        2e-3,
        seed=seed,
        cooldown_losses=lambda rng: compute_losses(rng, as_rendered),
        evaluate=lambda: head_accuracy(predict_views(stage, held_out)),
    )


def average(*, checkpoints: tuple[str, ...], splits: str, data: str = "data", run_dir: str = RUN_DIR) -> None:
    """Average the weights of vision encoders trained from a common checkpoint, and recalibrate batch norms.

    Args:
        checkpoints: dense.pt of two runs or more.
        splits: folders of the data to recalibrate with, separated by commas.
        data: the data folder.
        run_dir: folder of the mean's checkpoint dense.pt.
    """
    from .checkpoints import load_vision_stage
    from .dataset import load_training_data
    from .trainer import save_checkpoint
    from .weight_averaging import average_weights, recalibrate_batch_norm

    _set_up()
    path = Path(run_dir) / "dense.pt"
    if path.exists():
        raise InputError(path, "already the checkpoint of a run", "choose another --run-dir")
    stage = average_weights([load_vision_stage(Path(file)) for file in checkpoints])
    recalibrate_batch_norm(stage, load_training_data(data, splits))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, 0, stage, {})


def read(run_dir: str = RUN_DIR, steps: int = 800, seed: int = 0, init_from: str | None = None) -> None:
    """Train text model and connector on synthetic scenes, to attend to the kart that a question names.

    Args:
        run_dir: folder of the checkpoint read.pt and the curve read.jsonl.
        steps: number of batches.
        seed: of weights and scenes.
        init_from: a checkpoint text.pt or a base's folder to begin with, instead of random weights.
    """
    from .init_name_attention import init_name_matching_head
    from .trainer import train_stage

    _set_up(seed)
    stage = _make_text_stage(init_from)
    stage.init_connector()
    init_name_matching_head(stage, seed)
    stage.perturb_predictions = False
    train_stage(stage, stage.synthetic_losses, Path(run_dir), "read", steps, 1e-3, seed=seed, warmup=50)


def text(
    data: str = "data",
    splits: str = "train",
    run_dir: str = RUN_DIR,
    steps: int = 800,
    batch_size: int = 64,
    seed: int = 0,
    init_from: str | None = None,
) -> None:
    """Train text model and connector on captions and paraphrased questions, with the vision encoder frozen.

    Args:
        data: the data folder.
        splits: folders of the data, separated by commas.
        run_dir: folder of the dense stage's checkpoint dense.pt, of text.pt and of the curve text.jsonl.
        steps: number of batches.
        batch_size: views per batch.
        seed: of weights, batches and augmentation.
        init_from: a checkpoint (read.pt, text.pt) or a base's folder to begin with, instead of random weights.
    """
    from homework.labels.questions import classify_caption
    from homework.models.clip import class_prior_logits

    from .checkpoints import load_vision_stage
    from .dataset import load_training_data
    from .trainer import train_stage

    _set_up(seed)
    vision = load_vision_stage(Path(run_dir) / "dense.pt")
    dataset = load_training_data(data, splits)
    stage = _make_text_stage(init_from)
    stage.load_vision(vision.tower, vision.heads)
    caption_types = [classify_caption(caption) for caption in stage.captions]
    stage.prior_logits = class_prior_logits(stage.caption_targets(dataset.scenes), caption_types)

    def compute_losses(rng):
        pixels, _, scenes = dataset.sample_batch(rng, batch_size)
        return stage.losses(pixels, scenes, rng, whole=pixels.shape[-1] == dataset.views.shape[2])

    train_stage(stage, compute_losses, Path(run_dir), "text", steps, 1e-3, seed=seed, warmup=50)


def export(run_dir: str = RUN_DIR, output: str = str(BASE_DIR)) -> None:
    """Fold batch norms, expand the vocabulary, and write the base in float16; save encoder and heads too.

    Args:
        run_dir: folder of the text stage's checkpoint text.pt.
        output: folder of the base, where `processor` has written its files.
    """
    from safetensors.torch import save_file

    from homework.models.tux_nano.modeling_hf import TuxNanoForConditionalGeneration

    from .assemble import fold_batch_norm, make_config
    from .trainer import load_checkpoint

    stage = _make_text_stage(base=output)
    load_checkpoint(Path(run_dir) / "text.pt", stage)
    encoder = fold_batch_norm(stage.tower)
    model = TuxNanoForConditionalGeneration(make_config(encoder.config)).eval()
    weights = {k: v for k, v in stage.model.state_dict().items() if ".vision_model." not in k}
    table = stage.vocabulary.expand(stage.model.get_input_embeddings())
    weights |= {"model.text_model.embed_tokens.weight": table, "lm_head.weight": table}
    weights |= {f"model.vision_model.{k}": v for k, v in encoder.state_dict().items()}
    model.load_state_dict(weights)
    model.half().save_pretrained(output)
    # norms and biases stay in float32: they are small, and a variance may be below float16's range
    parts = {"tower": stage.tower.state_dict(), "heads": stage.heads.state_dict()}
    saved = {f"{part}.{k}": v.half() if v.ndim > 1 else v for part, state in parts.items() for k, v in state.items()}
    with atomic_write(SAVED_STAGE) as temporary:
        save_file({k: v.contiguous() for k, v in saved.items()}, temporary)


def evaluate_vision(
    split: str = "valid", data: str = "data", checkpoint: str = str(SAVED_STAGE), quality: int | None = None
) -> None:
    """Evaluate the vision encoder by its heads, in percent: counts above 0, both halves of a relation.

    Accuracies by kart size, difficulty and ego kart follow.

    Args:
        split: folder of the data.
        data: the data folder.
        checkpoint: a saved stage, or a run's checkpoint dense.pt.
        quality: re-encode images at this JPEG quality (1 to 100) before evaluating.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError("--quality", f"expected 1 to 100, got {quality}", "choose another quality")
    from .checkpoints import load_vision_stage
    from .dataset import PretrainDataset
    from .eval_vision import format_report, jpeg_roundtrip, predict_views

    _set_up()
    stage = load_vision_stage(Path(checkpoint)).eval()
    dataset = PretrainDataset(Path(data), [split])
    if quality is not None:
        dataset.views = jpeg_roundtrip(quality, dataset.views)
    print("\n".join(format_report(list(predict_views(stage, dataset)), dataset)))


def evaluate_text(split: str = "valid", data: str = "data", base: str = str(BASE_DIR)) -> None:
    """Evaluate a base (no LoRA) on the paraphrased questions; print accuracy by kart count and question type.

    Args:
        split: folder of the data.
        data: the data folder.
        base: folder of the base.
    """
    from homework.base_vlm import BaseVLM
    from homework.labels.eval_sets import split_scenes

    from .eval_text import evaluate_paraphrased, format_accuracy_table

    _set_up()
    vlm = BaseVLM(base)
    vlm.show_progress = True
    print("\n".join(format_accuracy_table(*evaluate_paraphrased(vlm, split_scenes(data, split), Path(data)))))


# the commands' names, which those of the functions cannot be: modules have them
evaluate_vision.__name__, evaluate_text.__name__ = "eval_vision", "eval_text"


def _set_up(seed: int | None = None) -> None:
    """Use all cores, and seed the weights."""
    import torch

    from homework.training.trainer import use_all_cores

    use_all_cores()
    if seed is not None:
        torch.manual_seed(seed)


def _make_text_stage(init_from: str | None = None, base: str = str(BASE_DIR)) -> "TextStage":
    """Build a text stage with the processor of a base, initialised from another stage or base if one is given."""
    from transformers import AutoProcessor

    from homework.models.prompts import PromptTokens

    from .checkpoints import VISION_CONFIG, load_text_weights
    from .text_stage import TextStage

    stage = TextStage(VISION_CONFIG, PromptTokens(AutoProcessor.from_pretrained(base)))
    if init_from:
        load_text_weights(stage, Path(init_from))
    return stage


def main() -> None:
    """Run the command line."""
    run(processor, fovea, dense, average, read, text, export, evaluate_vision, evaluate_text)
