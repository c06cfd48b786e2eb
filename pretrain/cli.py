"""The stages of pretraining as commands; torch is imported when one runs, so that help comes at once."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from homework.utils.cli import run
from homework.utils.io import atomic_write

from . import BASE_DIR, SAVED_STAGE

RUN_DIR = "runs/pretrain"


@dataclass(frozen=True)
class StageOptions:
    """Options of the stages that train on frames."""

    data: str = "data"  # the data folder
    splits: str = "train"  # folders of the data, separated by commas, drawn equally often
    run_dir: str = RUN_DIR  # folder of the checkpoint and the curve, e.g. dense.pt and dense.jsonl
    batch_size: int = 64  # views per step
    seed: int = 0  # of weights, batches and augmentation
    init_from: str | None = None  # weights to begin with: a run's checkpoint, or pretrain/stage.safetensors


Options = Annotated[StageOptions, tyro.conf.arg(name="")]  # flags without a prefix


def processor(*, gguf: str, output: str = str(BASE_DIR)) -> None:
    """Write the tokenizer.

    Args:
        gguf: a GGUF file of SmolLM2, which holds its vocabulary.
        output: folder of the base.
    """
    from . import assemble

    assemble.make_tokenizer(Path(gguf)).save_pretrained(output)


def fovea(options: Options, steps: int = 2000) -> None:
    """Train the foveal convolutions to name small karts, on windows that are full of them.

    Args:
        steps: number of batches.
    """
    from . import checkpoints, trainer
    from .eval_vision import kart_accuracy_by_size, predict_views

    _set_up(options.seed)
    stage = checkpoints.FoveaStage(checkpoints.VISION_CONFIG)
    views, held_out = _load_views_and_weights(options, stage)
    compute_losses = lambda rng: stage.losses(*views.sample_windows(rng, options.batch_size))

    def evaluate() -> dict[str, float]:
        sizes = kart_accuracy_by_size(predict_views(stage, held_out), held_out.scenes)
        return {f"cells {size}": round(100 * correct / max(1, karts), 1) for size, (correct, karts) in sizes.items()}

    trainer.train_stage(stage, compute_losses, options.run_dir, "fovea", steps, 2e-3, options.seed, evaluate=evaluate)


def dense(options: Options, steps: int = 3700) -> None:
    """Pretrain the vision encoder with dense box supervision; no zoom and no added karts during cooldown.

    Args:
        steps: number of batches.
    """
    from . import checkpoints, dense_heads, trainer
    from .augment import AUGMENT
    from .eval_vision import head_accuracy, predict_views

    _set_up(options.seed)
    stage = checkpoints.VisionStage()
    views, held_out = _load_views_and_weights(options, stage)

    def compute_losses(rng, config=AUGMENT):
        pixels, targets, _ = views.sample_batch(rng, options.batch_size, config)
        return dense_heads.dense_loss(stage(pixels)[0], targets)

    as_rendered = replace(AUGMENT, zoom_prob=0, add_far_karts_prob=0)  # as many karts, and as sharp, as the game shows
    cooldown = lambda rng: compute_losses(rng, as_rendered)
    evaluate = lambda: head_accuracy(predict_views(stage, held_out))
    run_dir, seed = options.run_dir, options.seed
    trainer.train_stage(stage, compute_losses, run_dir, "dense", steps, 2e-3, seed, cooldown, evaluate)


def _load_views_and_weights(options: StageOptions, stage):
    """Load the weights that the vision stage begins with; return the views to train on, and those held out."""
    from . import checkpoints, dataset

    if options.init_from:
        checkpoints.load_vision_weights(stage, Path(options.init_from))
    return [dataset.load_training_data(options.data, options.splits, held_out) for held_out in (False, True)]


def read(run_dir: str = RUN_DIR, steps: int = 800, seed: int = 0) -> None:
    """Train text model and connector on synthetic scenes, to attend to the kart that a question names.

    Args:
        run_dir: folder of the checkpoint read.pt and the curve read.jsonl.
        steps: number of batches.
        seed: of weights and scenes.
    """
    from . import text_stage, trainer

    _set_up(seed)
    stage = _make_text_stage()
    stage.init_connector()
    text_stage.init_name_matching_head(stage, seed)
    stage.perturb_predictions = False
    trainer.train_stage(stage, stage.synthetic_losses, run_dir, "read", steps, 1e-3, seed, warmup=50)


def text(options: Options, steps: int = 800) -> None:
    """Train text model and connector on captions and paraphrased questions, above the run's frozen dense.pt.

    Args:
        steps: number of batches.
    """
    from homework.labels.questions import classify_caption
    from homework.models.clip import class_prior_logits

    from . import checkpoints, dataset, trainer

    _set_up(options.seed)
    vision = checkpoints.load_vision_stage(Path(options.run_dir) / "dense.pt")
    views = dataset.load_training_data(options.data, options.splits)
    stage = _make_text_stage()
    if options.init_from:
        trainer.load_checkpoint(Path(options.init_from), stage)
    stage.load_vision(vision.vision_encoder, vision.heads)
    caption_types = [classify_caption(caption) for caption in stage.captions]
    stage.prior_logits = class_prior_logits(stage.caption_targets(views.scenes).mean(0), caption_types)

    def compute_losses(rng):
        pixels, _, scenes = views.sample_batch(rng, options.batch_size)
        return stage.losses(pixels, scenes, rng, whole=pixels.shape[-1] == views.views.shape[2])

    trainer.train_stage(stage, compute_losses, options.run_dir, "text", steps, 1e-3, options.seed, warmup=50)


def export(run_dir: str = RUN_DIR, output: str = str(BASE_DIR)) -> None:
    """Fold batch norms, expand the vocabulary, and write the base in float16; save encoder and heads too.

    Args:
        run_dir: folder of the text stage's checkpoint text.pt.
        output: folder of the base, where `processor` has written the tokenizer.
    """
    from safetensors.torch import save_file

    from homework.models.tux_nano.model import TuxNano

    from . import assemble, trainer

    stage = _make_text_stage(output)
    trainer.load_checkpoint(Path(run_dir) / "text.pt", stage)
    encoder = assemble.fold_batch_norm(stage.model.vision_encoder)
    model = TuxNano(assemble.make_config(encoder.config)).eval()
    weights = {k: v for k, v in stage.model.state_dict().items() if not k.startswith("vision_encoder.")}
    weights["language_model.embed_tokens.weight"] = stage.vocabulary.expand(stage.model.language_model.embed_tokens)
    weights |= {f"vision_encoder.{k}": v for k, v in encoder.state_dict().items()}
    model.load_state_dict(weights)
    model.half().save(Path(output))
    # norms and biases stay in float32: they are small, and a variance may be below float16's range
    parts = {"vision_encoder": stage.model.vision_encoder.state_dict(), "heads": stage.heads.state_dict()}
    saved = {f"{part}.{k}": v.half() if v.ndim > 1 else v for part, state in parts.items() for k, v in state.items()}
    with atomic_write(SAVED_STAGE) as temporary:
        save_file({k: v.contiguous() for k, v in saved.items()}, temporary)


def eval_vision(split: str = "valid", data: str = "data", checkpoint: str = str(SAVED_STAGE)) -> None:
    """Evaluate the vision encoder by its heads: accuracies in percent, also by size, difficulty and number of karts.

    Args:
        split: folder of the data.
        data: the data folder.
        checkpoint: a run's dense.pt, or pretrain/stage.safetensors.
    """
    from . import checkpoints, dataset
    from .eval_vision import format_report, predict_views

    _set_up()
    stage, views = checkpoints.load_vision_stage(Path(checkpoint)).eval(), dataset.PretrainDataset(Path(data), [split])
    print("\n".join(format_report(list(predict_views(stage, views)), views)))


def eval_text(split: str = "valid", data: str = "data", base: str = str(BASE_DIR)) -> None:
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
    counts = evaluate_paraphrased(vlm, split_scenes(data, split), Path(data))
    print("\n".join(format_accuracy_table(*counts)))


def _set_up(seed: int = 0) -> None:
    import torch

    from homework.training.trainer import use_all_cores

    use_all_cores()
    torch.manual_seed(seed)


def _make_text_stage(base: str = str(BASE_DIR)):
    """Build a text stage with the tokenizer in a base's folder."""
    from homework.models.prompts import PromptTokens
    from homework.models.tux_nano.connector import num_image_tokens
    from homework.models.tux_nano.processor import TuxNanoProcessor

    from . import checkpoints, targets, text_stage

    # a new base has no config yet, so `load_processor` cannot read the folder
    processor = TuxNanoProcessor(Path(base), num_image_tokens(len(targets.KARTS)))
    return text_stage.TextStage(checkpoints.VISION_CONFIG, PromptTokens(processor))


def main() -> None:
    """Run the command line."""
    run(processor, fovea, dense, read, text, export, eval_vision, eval_text)
