"""What LoRA is measured against: a fine-tune of all weights, and for CLIP one of no encoder's.

Each takes the same data, batches, steps and schedule as `homework.finetune train` and `homework.clip train`, and
prints the accuracy that those commands' `test` would.
"""

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model

from homework import clip
from homework.base_vlm import BaseVLM
from homework.data import benchmark
from homework.finetune import PackedVQADataset, all_questions, collate_views, default_steps, print_result
from homework.labels.rows import DATA_DIR
from homework.models.loading import DEFAULT_BASE, base_id, load_base, load_processor
from homework.training.packing import PackedTrainingModule
from homework.training.trainer import TrainingConfig, fit
from homework.utils.cli import run
from homework.utils.errors import check_min

NO_LORA = 0  # a recipe's rank
WEIGHTS = "model.safetensors"


class _AllWeights:
    """In a trained module's place of an adapter: all of its weights."""

    def save_adapter(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_model(self, str(Path(folder) / WEIGHTS))

    def load_adapter(self, folder: str | Path) -> None:
        load_model(self, str(Path(folder) / WEIGHTS))


class FullLM(_AllWeights, PackedTrainingModule):
    """A generative model of which every weight is trained."""


class FullCLIP(_AllWeights, clip.CLIPTrainingModule):
    """A CLIP of which every weight is trained that isn't frozen."""


def vlm(
    base: str = DEFAULT_BASE,
    data: str = str(DATA_DIR),
    output: str = "runs/full_vlm",
    steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
    seed: int = 0,
) -> None:
    """Fine-tune all weights of the VLM on the questions of train, and test it on all of valid.

    Args:
        base: folder or hub name of an Idefics3 model.
        data: the data folder.
        output: folder for the weights; checkpoints go to a folder beside it.
        steps: how many batches; without it as many as LoRA's.
        batch_size: views a batch, each with all its questions.
        learning_rate: its highest value; lower than LoRA's, whose new weights begin at zero.
        seed: of the order of views.
    """
    check_min(1, steps=steps, batch_size=batch_size)
    data_dir = Path(data)
    dataset = PackedVQADataset.of_split("train", data_dir)
    torch.manual_seed(seed)
    model, processor = load_base(base)
    asked = BaseVLM.from_parts(model.float().requires_grad_(True), processor)
    steps = default_steps(model) if steps is None else steps
    recipe = TrainingConfig(
        base_id(base), steps, batch_size, learning_rate, NO_LORA, seed, len(dataset), dataset.digest()
    )
    collate = partial(collate_views, processor=processor, tokens=asked.tokens)
    fit(FullLM(model), dataset, collate, recipe, Path(f"{output}_work"), Path(output), dict, evaluations=1)
    model.eval()
    print_result(benchmark(asked, all_questions("valid", data_dir)), "all weights on all of valid")


def clip_encoders(
    base: str = DEFAULT_BASE,
    data: str = str(DATA_DIR),
    output: str = "runs/full_clip",
    steps: int = 300,
    batch_size: int | None = None,
    learning_rate: float = 5e-4,
    frozen: bool = False,
    seed: int = 0,
    questions: int = 2000,
) -> None:
    """Train CLIP with all weights of its encoders, or with none of them, and test it on questions from valid.

    Args:
        base: folder or hub name of an Idefics3 model.
        data: the data folder.
        output: folder for the weights; checkpoints go to a folder beside it.
        steps: how many batches.
        batch_size: views a batch, compared with all captions; without it as many as LoRA's.
        learning_rate: its highest value.
        frozen: train the projections alone, on encoders as the base has them.
        seed: of the new weights and the order of views.
        questions: how many are made of valid.
    """
    check_min(1, steps=steps, batch_size=batch_size, questions=questions)
    data_dir = Path(data)
    captioned = clip.CaptionMatchingDataset.of_split("train", data_dir)
    torch.manual_seed(seed)
    model, tokenizer = clip.build(base).float(), load_processor(base).tokenizer
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(clip.BASE_MODEL_PREFIXES)))
    dataset, collate = clip.training_set(captioned, model, tokenizer, seed)
    size = clip.default_batch_size(dataset) if batch_size is None else batch_size
    of_data = len(captioned), captioned.digest()
    recipe = TrainingConfig(base_id(base), steps, size, learning_rate, NO_LORA, seed, *of_data)
    fit(FullCLIP(model), dataset, collate, recipe, Path(f"{output}_work"), Path(output), dict, evaluations=1)
    rows = clip.generate_eval_rows("valid", questions, data_dir)
    clip.print_score(
        rows, clip.predict(model, tokenizer, rows), f"{'no' if frozen else 'every'} encoder weight trained"
    )


if __name__ == "__main__":
    run(vlm, clip_encoders)
