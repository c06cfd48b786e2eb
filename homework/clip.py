"""CLIP on the VLM's encoders, trained on captions: `train`, `test`."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .checkpoint import (
    EMBEDDED_BASE,
    Adapted,
    adapter_base,
    add_lora,
    checkpoint_folder,
    load_adapter,
    load_model,
    load_processor,
    portable_base,
    unwrap,
)
from .clip_model import CLIP, FROM_BASE, log_odds_of
from .data import (
    DATA_DIR,
    CaptionDataset,
    MultiChoiceQADataset,
    guard_training_split,
    interval,
    with_image,
    with_path,
)
from .errors import InputError, write_json
from .preprocess import clip_pixels, load_views, open_image
from .progress import bar
from .questions import caption_kind, captions
from .scene import frame_of, read_info, scene

SHIPPED = Path(__file__).parent / "clip"
LEARNING_RATE = 2e-3  # its highest value
IMAGES_AT_ONCE = 64


def tokenize(texts: Sequence[str], tokenizer) -> dict[str, Tensor]:
    """input_ids and attention_mask [n, s] of the texts, each with the end token, as the grader makes them."""
    encoded = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


class CaptionedViews(Dataset):
    """The views that a split has captions of, each with the captions that are true of it.

    A split's captions are few and true of many views, so what is true is asked of the scenes, not of the
    file's rows: another view's caption is no negative where it is true here too.
    """

    def __init__(self, rows: Sequence[dict], data_dir: Path, cache_dir: Path | None = None):
        true: dict[str, set[str]] = {}
        for row in rows:
            true.setdefault(row["image_file"], set()).add(row["caption"])
        infos: dict[str, dict] = {}
        for image, known in bar(true.items(), desc="reading frames", unit="view", delay=1):
            frame, view = frame_of(image)
            file = data_dir / f"{frame}_info.json"
            if frame not in infos and file.exists():
                infos[frame] = read_info(file)
            if frame in infos:
                if view >= len(infos[frame]["detections"]):
                    raise InputError(file, f"no view {view}", f"take {image} out of the captions")
                known.update(captions(scene(infos[frame], view)))
        self.captions = sorted(set().union(*true.values()))
        index = {caption: i for i, caption in enumerate(self.captions)}
        self.truth = torch.zeros(len(true), len(self.captions))
        for row, known in enumerate(true.values()):
            self.truth[row, [index[caption] for caption in known]] = 1
        self.views = load_views([data_dir / image for image in true], cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path) -> "CaptionedViews":
        """Every caption of a split's *_captions.json whose image is there."""
        return cls(with_image(CaptionDataset(split, data_dir)), data_dir, data_dir / ".cache")

    def texts(self, tokenizer) -> dict[str, Tensor]:
        """What all batches share: input_ids and attention_mask [n, s] of the captions, and their log_odds [n]."""
        log_odds = log_odds_of(self.truth, [caption_kind(caption) for caption in self.captions])
        return tokenize(self.captions, tokenizer) | {"log_odds": log_odds}

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, i: int) -> tuple["torch.Tensor", Tensor]:
        """(view [100, 150, 3] of uint8, truth [captions])."""
        return self.views[i], self.truth[i]


def collate_captioned(items: list, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Items of `CaptionedViews` and its `texts` -> a batch for `ContrastiveCLIP`."""
    views, truth = zip(*items, strict=True)
    return {"pixel_values": clip_pixels(views), "truth": torch.stack(truth), **texts}


class ContrastiveCLIP(Adapted):
    """A CLIP with LoRA that maps images and all captions of the split to its loss."""

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, truth: Tensor, log_odds: Tensor
    ) -> dict:
        """pixel_values [b, 3, 192, 192]; input_ids, attention_mask [n, s]; truth [b, n]; log_odds [n] -> `loss`."""
        vision, text, _ = self.base(pixel_values, input_ids, attention_mask)
        return {"loss": self.base.loss(vision, text, truth, log_odds)}

    def save_adapter(self, folder: str | Path) -> None:
        super().save_adapter(folder)
        self.base.save_pretrained(folder)

    def load_adapter(self, folder: str | Path) -> None:
        super().load_adapter(folder)
        self.base.load_pretrained(folder)


def of_vlm(vlm: nn.Module) -> CLIP:
    """A new CLIP of a VLM's encoders, and of its connector's recogniser where it has one; on the VLM's device."""
    recogniser = getattr(vlm.model.connector, "recogniser", None)
    return CLIP(vlm.model.vision_model, vlm.model.text_model, recogniser).to(vlm.device)


def build(base: str) -> CLIP:
    """CLIP with new projections on a base's encoders; they stay in float32 where the encoders are in bfloat16."""
    return of_vlm(load_model(base))


def with_lora(clip: CLIP, rank: int, base: str) -> nn.Module:
    """A PeftModel of a CLIP: LoRA on its encoders; its projections are new, so they are trained whole.

    A vision encoder that is read by what it recognises stays as it is: it was taught that, with the grader's crop too.
    """
    peft_clip = add_lora(clip, rank, base, except_for="vision_encoder" if clip.recogniser else None)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith(FROM_BASE))
    return peft_clip


def build_trainable(base: str, rank: int) -> ContrastiveCLIP:
    """A new CLIP with LoRA."""
    return ContrastiveCLIP(with_lora(build(base), rank, base))


def _progress(clip: nn.Module, tokenizer, rows: list[dict]) -> dict[str, float]:
    """Accuracy in percent; nothing without rows."""
    if not rows:
        return {}
    right, asked = score(rows, predict(clip, tokenizer, rows))
    return {"accuracy": 100 * right.total() / asked.total()}


def train(
    base: str = EMBEDDED_BASE,
    split: str = "train",
    data: str = str(DATA_DIR),
    output: str = str(SHIPPED),
    work: str = "runs/clip",
    steps: int = 300,
    batch_size: int = 64,
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
        batch_size: views a batch; each is compared with all captions of the split.
        learning_rate: its highest value.
        rank: of LoRA.
        seed: of the new weights and the order of views.
        progress_questions: how many questions of valid are asked now and then, to watch the training.
    """
    from .evalsets import multiple_choice
    from .training import Recipe, fit, questions_on_valid

    guard_training_split(split)
    data_dir = Path(data)
    dataset = CaptionedViews.of_split(split, data_dir)
    torch.manual_seed(seed)
    module, tokenizer = build_trainable(base, rank), load_processor(base).tokenizer
    rows = questions_on_valid(multiple_choice, progress_questions, data_dir)
    fit(
        module,
        dataset,
        partial(collate_captioned, texts=dataset.texts(tokenizer)),
        Recipe(portable_base(base), steps, batch_size, learning_rate, rank, seed, len(dataset)),
        Path(work),
        Path(output),
        partial(_progress, module.base, tokenizer, rows),
    )


def load(name: str | Path = SHIPPED) -> nn.Module:
    """The submitted CLIP: a PeftModel whose `.model` is the `CLIP`.

    Args:
        name: a checkpoint's folder, by default the one beside this file.

    Raises:
        InputError: no checkpoint, or one of another base.
    """
    folder = checkpoint_folder(name)
    clip = build(adapter_base(folder))
    peft_clip = load_adapter(clip, folder)
    clip.load_pretrained(folder)
    return peft_clip.eval()


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
    compared = bar(total=len(rows), desc="comparing", unit="image", shown=progress)
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        chunk = rows[start : start + IMAGES_AT_ONCE]
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
        kind = caption_kind(row["candidates"][row["correct_index"]])
        asked[kind] += 1
        right[kind] += predicted == row["correct_index"]
    return right, asked


def made_rows(split: str, number: int, data_dir: Path) -> list[dict]:
    """`number` multiple-choice questions, each with one true candidate, made of a split's frames; always the same.

    Raises:
        InputError: the split can't give as many.
    """
    from .evalsets import multiple_choice, split_scenes

    return with_path(multiple_choice(split_scenes(data_dir, split), number, seed=0), data_dir)


def print_score(rows: Sequence[dict], predictions: Sequence[int], title: str) -> None:
    """Accuracy in total and by the kind of the true caption, in percent, with 95 % intervals."""
    right, asked = score(rows, predictions)
    print(f"{title}: {len(rows)} questions, chance 20.0")
    print(f"{'':16}{'right':>8}{'n':>8}{'95 %':>16}")
    counts = [(kind, right[kind], asked[kind]) for kind in sorted(asked)]
    for name, hits, n in [*counts, ("all questions", right.total(), len(rows))]:
        low, high = (100 * value for value in interval(hits / n, n))
        print(f"  {name:14}{100 * hits / n:8.1f}{n:8}{low:10.1f}-{high:<5.1f}".rstrip())


def test(
    checkpoint: str,
    split: str = "valid_grader",
    data: str = str(DATA_DIR),
    whole: int = 0,
    output: str | None = None,
) -> None:
    """Benchmark a checkpoint on multiple-choice questions: accuracy in total and by kind.

    Example: python -m homework.clip test homework/clip --split valid --whole 2000

    Args:
        checkpoint: a PEFT folder with additional_weights.pt.
        split: folder of the data to ask about.
        data: the data folder.
        whole: make so many questions, each with one true candidate, from the split's frames instead.
        output: write every prediction into this JSON file.
    """
    data_dir = Path(data)
    rows = made_rows(split, whole, data_dir) if whole else MultiChoiceQADataset(split, data_dir).rows
    clip = load(Path(checkpoint).resolve())
    tokenizer = load_processor(adapter_base(checkpoint)).tokenizer
    predictions = predict(clip, tokenizer, rows, progress=True)
    print_score(rows, predictions, f"{checkpoint} on {f'{whole} questions from ' if whole else ''}{split}")
    if output:
        write_json(output, [{**row, "prediction": p} for row, p in zip(rows, predictions, strict=True)])


if __name__ == "__main__":
    from .cli import run

    run(train, test)
