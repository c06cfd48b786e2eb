"""CLIP on the VLM's encoders, trained on captions: `train`, `test`."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .data import wilson_interval
from .labels.questions import classify_caption
from .labels.rows import DATA_DIR, MultiChoiceQADataset, add_image_paths, check_not_eval_split
from .models.clip import BASE_MODEL_PREFIXES, CLIP
from .models.images import clip_pixels
from .models.loading import (
    DEFAULT_BASE,
    adapter_base,
    base_id,
    checkpoint_folder,
    load_adapter,
    load_model,
    load_processor,
    load_quickly,
    unwrap,
)
from .training.clip_dataset import (
    CachedFeatureDataset,
    CaptionMatchingDataset,
    collate_features,
    collate_images,
    tokenize,
)
from .training.lora import PeftTrainingModule, add_lora
from .utils.errors import check_min
from .utils.images import open_image
from .utils.io import check_writable, write_json
from .utils.progress import progress_bar

DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "clip"
STEPS = 300
LEARNING_RATE = 2e-3  # its highest value
IMAGE_BATCH_SIZE = 64


class CLIPTrainingModule(PeftTrainingModule):
    """A CLIP with LoRA that maps images and all captions of the split to its loss."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        truth: Tensor,
        prior_logits: Tensor,
        pixel_values: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> dict:
        """The `loss` of a batch.

        Args:
            input_ids, attention_mask: of all texts, [n, s].
            truth: which are true of which image, [b, n].
            log_odds: see `class_prior_logits`, [n].
            pixel_values: the images, [b, 3, 192, 192];
            shown: or what `CLIP.look` saw in them, [b, width].
        """
        shown = self.base.look(pixel_values) if shown is None else shown
        vision, text = self.base.project_image(shown), self.base.encode_text(input_ids, attention_mask)
        return {"loss": self.base.loss(vision, text, truth, prior_logits)}

    def save_adapter(self, folder: str | Path) -> None:
        super().save_adapter(folder)
        self.base.save_pretrained(folder)

    def load_adapter(self, folder: str | Path) -> None:
        super().load_adapter(folder)
        self.base.load_pretrained(folder)


def clip_from_vlm(vlm: nn.Module) -> CLIP:
    """A new CLIP of a VLM's encoders, and of its connector's recogniser where it has one; on the VLM's device."""
    recogniser = getattr(vlm.model.connector, "recogniser", None)
    return CLIP(vlm.model.vision_model, vlm.model.text_model, recogniser).to(vlm.device)


def build(base: str) -> CLIP:
    """CLIP with new projections on a base's encoders; they stay in float32 where the encoders are in bfloat16."""
    return clip_from_vlm(load_model(base))


def with_lora(clip: CLIP, rank: int, base: str) -> nn.Module:
    """A PeftModel of a CLIP: LoRA on its encoders; its projections are new, so they are trained whole.

    A vision encoder that is read by what it recognises stays as it is: it was taught that, with the grader's crop too.
    """
    peft_clip = add_lora(clip, rank, base, exclude="vision_encoder" if clip.recogniser else None)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith(BASE_MODEL_PREFIXES))
    return peft_clip


def build_trainable(base: str, rank: int) -> CLIPTrainingModule:
    """A new CLIP with LoRA."""
    return CLIPTrainingModule(with_lora(build(base), rank, base))


def training_set(
    captioned: CaptionMatchingDataset, clip: CLIP, tokenizer, seed: int
) -> tuple[Dataset, Callable[[list], dict]]:
    """What CLIP learns from, and what makes a batch of it for `CLIPTrainingModule`.

    Args:
        seed: of which views it looks at.
    """
    texts = captioned.texts(tokenizer)
    if clip.vision_is_trainable:
        return captioned, partial(collate_images, texts=texts)
    return CachedFeatureDataset(captioned, clip, seed), partial(collate_features, texts=texts)


def default_batch_size(dataset: Dataset) -> int:
    """Views a batch by default: where each is looked at once, a step of twice as many costs little more."""
    return 128 if isinstance(dataset, CachedFeatureDataset) else 64


def _progress(clip: nn.Module, tokenizer, rows: list[dict]) -> dict[str, float]:
    """Accuracy in percent; nothing without rows."""
    if not rows:
        return {}
    right, asked = score(rows, predict(clip, tokenizer, rows))
    return {"accuracy": 100 * right.total() / asked.total()}


def train(
    base: str = DEFAULT_BASE,
    split: str = "train",
    data: str = str(DATA_DIR),
    output: str = str(DEFAULT_CHECKPOINT),
    work: str = "runs/clip",
    steps: int = STEPS,
    batch_size: int | None = None,
    learning_rate: float = LEARNING_RATE,
    rank: int = 16,
    seed: int = 0,
    progress_questions: int = 200,
) -> None:
    """Train CLIP on every *_captions.json of a split. Stopped and run again, it goes on.

    Example: python -m homework.clip train --base HuggingFaceTB/SmolVLM-256M-Instruct --output runs/smolclip

    Args:
        base: folder or hub name of an Idefics3 model.
        split: folder of the data to train on.
        data: the data folder.
        output: where the adapter goes; the default is what `bundle.py` packs.
        work: folder for checkpoints and TensorBoard.
        steps: how many batches.
        batch_size: views a batch; without it 64, or 128 on the embedded base.
        learning_rate: its highest value.
        rank: of LoRA.
        seed: of the new weights and the order of views.
        progress_questions: how many questions of valid are asked now and then, to watch the training.
    """
    from .labels.eval_sets import multiple_choice
    from .training.trainer import TrainingConfig, fit, validation_rows

    check_not_eval_split(split)
    check_min(1, steps=steps, batch_size=batch_size, rank=rank)
    check_min(0, learning_rate=learning_rate, seed=seed, progress_questions=progress_questions)
    data_dir = Path(data)
    captioned = CaptionMatchingDataset.of_split(split, data_dir)
    torch.manual_seed(seed)
    module, tokenizer = build_trainable(base, rank), load_processor(base).tokenizer
    rows = validation_rows(multiple_choice, progress_questions, data_dir)
    dataset, collate = training_set(captioned, module.base, tokenizer, seed)
    size = default_batch_size(dataset) if batch_size is None else batch_size
    of_data = len(captioned), captioned.digest()
    recipe = TrainingConfig(base_id(base), steps, size, learning_rate, rank, seed, *of_data)
    fit(
        module,
        dataset,
        collate,
        recipe,
        Path(work),
        Path(output),
        partial(_progress, module.base, tokenizer, rows),
    )


def load(name: str | Path = DEFAULT_CHECKPOINT) -> nn.Module:
    """The submitted CLIP: its `.model` is a `CLIP`.

    Args:
        name: a checkpoint's folder, by default the one beside this file.

    Raises:
        InputError: no checkpoint, or one of another base.
    """
    return load_with_tokenizer(name)[0]


def load_with_tokenizer(name: str | Path) -> tuple[nn.Module, Callable]:
    """A CLIP and what tokenizes its texts; without transformers where that can be.

    Raises:
        InputError: see `load`.
    """
    folder = checkpoint_folder(name)
    base = adapter_base(folder)
    quick = load_quickly(base, folder, clip_from_vlm)
    loaded, processor = quick or (load_adapter(build(base), folder), load_processor(base))
    loaded.model.load_pretrained(folder)
    return loaded.eval(), processor.tokenizer


@torch.inference_mode()
def predict(clip: nn.Module, tokenizer, rows: Sequence[dict], progress: bool = False) -> list[int]:
    """For each row, the index of the candidate that is nearest to the image; a text is encoded once."""
    device = next(clip.parameters()).device
    base = unwrap(clip).eval()
    texts = sorted({candidate for row in rows for candidate in row["candidates"]})
    index = {text: i for i, text in enumerate(texts)}
    features = [
        base.encode_text(**{k: v.to(device) for k, v in tokenize(texts[i : i + 256], tokenizer).items()})
        for i in range(0, len(texts), 256)
    ]
    features = torch.cat(features)  # [texts, dim]
    predictions = []
    compared = progress_bar(total=len(rows), desc="comparing", unit="image", shown=progress)
    for start in range(0, len(rows), IMAGE_BATCH_SIZE):
        chunk = rows[start : start + IMAGE_BATCH_SIZE]
        vision = base.encode_image(clip_pixels([open_image(row["image_path"]) for row in chunk]).to(device))
        for scores, row in zip(vision @ features.T, chunk, strict=True):
            candidates = scores[[index[candidate] for candidate in row["candidates"]]]
            predictions.append(int(candidates.argmax()))
        compared.update(len(chunk))
    compared.close()
    return predictions


def score(rows: Sequence[dict], predictions: Sequence[int]) -> tuple[Counter, Counter]:
    """(right, asked), by the kind of the true caption."""
    right, asked = Counter(), Counter()
    for row, predicted in zip(rows, predictions, strict=True):
        kind = classify_caption(row["candidates"][row["correct_index"]])
        asked[kind] += 1
        right[kind] += predicted == row["correct_index"]
    return right, asked


def generate_eval_rows(split: str, number: int, data_dir: Path) -> list[dict]:
    """`number` multiple-choice questions, each with one true candidate, made of a split's frames; always the same.

    Raises:
        InputError: the split can't give as many.
    """
    from .labels.eval_sets import multiple_choice, split_scenes

    return add_image_paths(multiple_choice(split_scenes(data_dir, split), number, seed=0), data_dir)


def print_score(rows: Sequence[dict], predictions: Sequence[int], title: str) -> None:
    """Accuracy in total and by the kind of the true caption, in percent, with 95 % intervals."""
    right, asked = score(rows, predictions)
    print(f"{title}: {len(rows)} questions, chance 20.0")
    print(f"{'':16}{'right':>8}{'n':>8}{'95 %':>16}")
    counts = [(kind, right[kind], asked[kind]) for kind in sorted(asked)]
    for name, hits, n in [*counts, ("all questions", right.total(), len(rows))]:
        low, high = (100 * value for value in wilson_interval(hits / n, n))
        print(f"  {name:14}{100 * hits / n:8.1f}{n:8}{low:10.1f}-{high:<5.1f}".rstrip())


def test(
    checkpoint: str,
    /,
    split: str = "valid_grader",
    data: str = str(DATA_DIR),
    whole: int = 0,
    output: str | None = None,
) -> None:
    """Benchmark a checkpoint on multiple-choice questions: accuracy in total and by kind.

    Example: python -m homework.clip test homework/weights/clip --split valid --whole 2000

    Args:
        checkpoint: a PEFT folder with additional_weights.pt.
        split: folder of the data to ask about.
        data: the data folder.
        whole: make so many questions, each with one true candidate, from the split's frames instead.
        output: write every prediction into this JSON file.
    """
    data_dir = Path(data)
    check_min(0, whole=whole)
    if output:
        check_writable(output)
    rows = generate_eval_rows(split, whole, data_dir) if whole else MultiChoiceQADataset(split, data_dir).rows
    clip, tokenizer = load_with_tokenizer(Path(checkpoint).resolve())
    predictions = predict(clip, tokenizer, rows, progress=True)
    print_score(rows, predictions, f"{checkpoint} on {f'{whole} questions from ' if whole else ''}{split}")
    if output:
        write_json(output, [{**row, "prediction": p} for row, p in zip(rows, predictions, strict=True)])


if __name__ == "__main__":
    from .utils.cli import run

    run(train, test)
