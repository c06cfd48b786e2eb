"""CLIP's training: views with all captions that are true of them, and the module that learns to match them."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..labels.frame_info import read_frame_info, read_scene
from ..labels.questions import captions, classify_caption
from ..labels.rows import CaptionDataset, drop_rows_without_image, parse_image_file
from ..models.clip import BASE_MODEL_PREFIXES, CLIP, class_prior_logits, tokenize
from ..models.images import clip_pixels, load_views
from ..utils.io import fingerprint
from ..utils.progress import progress_bar
from .lora import PeftTrainingModule, add_lora

MAX_CACHED_IMAGES = 6400  # images, at most, whose features are cached; 12,800 are hardly better


class CLIPTrainingModule(PeftTrainingModule):
    """A CLIP with LoRA that maps images and all captions of the split to the loss."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        prior_logits: Tensor,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict:
        """Return the `loss` of a batch.

        Args:
            input_ids, attention_mask: of all captions, [n, s].
            targets: which captions are true of which image, [b, n].
            prior_logits: see `class_prior_logits`, [n].
            pixel_values: the images, [b, 3, 192, 192]; or
            features: of the images, see `CLIP.encode_vision_features`, [b, width].
        """
        features = self.base.encode_vision_features(pixel_values) if features is None else features
        text_features = self.base.encode_text(input_ids, attention_mask)
        return {"loss": self.base.loss(self.base.project_image(features), text_features, targets, prior_logits)}

    def save_adapter(self, folder: str | Path) -> None:
        super().save_adapter(folder)
        self.base.save_pretrained(folder)

    def load_adapter(self, folder: str | Path) -> None:
        super().load_adapter(folder)
        self.base.load_pretrained(folder)


def add_lora_to_clip(clip: CLIP, rank: int, base: str) -> nn.Module:
    """Return a PeftModel of a CLIP: LoRA on its encoders; its projections are new, so they are trained whole.

    A vision encoder with prediction heads is frozen: it was pretrained for them, on the grader's crop too.
    """
    peft_clip = add_lora(clip, rank, base, exclude="vision_encoder" if clip.prediction_heads else None)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or not name.startswith(BASE_MODEL_PREFIXES))
    return peft_clip


class CaptionMatchingDataset(Dataset):
    """The views of a split that have captions, each with all captions that are true of it.

    Captions repeat across images, so targets are a multi-label matrix built from the scenes; a caption from another
    image is a negative only if it is false here.
    """

    def __init__(self, rows: Sequence[dict], data_dir: Path, cache_dir: Path | None = None):
        true_captions: dict[str, set[str]] = {}
        for row in rows:
            true_captions.setdefault(row["image_file"], set()).add(row["caption"])
        read = lru_cache(read_frame_info)
        for image, known in progress_bar(true_captions.items(), desc="reading frames", unit="view", delay=1):
            if (data_dir / f"{parse_image_file(image)[0]}_info.json").exists():
                known.update(captions(read_scene(image, data_dir, read)))
        self.captions = sorted(set().union(*true_captions.values()))
        index = {caption: i for i, caption in enumerate(self.captions)}
        self.targets = torch.zeros(len(true_captions), len(self.captions))
        for row, known in enumerate(true_captions.values()):
            self.targets[row, [index[caption] for caption in known]] = 1
        self.images = list(true_captions)
        self.views = load_views([data_dir / image for image in self.images], cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path) -> "CaptionMatchingDataset":
        """Read every caption of a split's *_captions.json whose image exists."""
        return cls(drop_rows_without_image(CaptionDataset(split, data_dir)), data_dir, data_dir / ".cache")

    def texts(self, tokenizer) -> dict[str, Tensor]:
        """Return what all batches share: the captions' input_ids and attention_mask [n, s], and prior_logits [n]."""
        prior_logits = class_prior_logits(self.targets, [classify_caption(caption) for caption in self.captions])
        return tokenize(self.captions, tokenizer) | {"prior_logits": prior_logits}

    def fingerprint(self) -> str:
        """Return a digest of images by name, captions, and which are true of which."""
        true = (",".join(map(str, row.nonzero()[:, 0].tolist())) for row in self.targets)
        return fingerprint([*self.images, *self.captions, *true])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[np.ndarray, Tensor]:
        """Return a view [100, 150, 3] uint8 and its targets [captions]."""
        return self.views[i], self.targets[i]


class CachedFeatureDataset(Dataset):
    """Views as the features of a CLIP whose vision part is frozen, so that each image is encoded once.

    Args:
        views: `MAX_CACHED_IMAGES` of them are drawn, or all are taken.
        clip: encodes an image when it is first needed.
        seed: of the draw.
    """

    def __init__(self, views: CaptionMatchingDataset, clip: CLIP, seed: int):
        chosen = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))[:MAX_CACHED_IMAGES]
        self.views, self.clip, self.chosen, self.targets = views, clip, chosen.tolist(), views.targets[chosen]
        self.features: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Return features [width] on the CPU and targets [captions]."""
        return self.__getitems__([i])[0]

    @torch.no_grad()
    def __getitems__(self, batch: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return a batch, which torch's loader asks for as one; its new images are encoded together."""
        new = [i for i in dict.fromkeys(batch) if i not in self.features]
        if new:
            was_training = self.clip.training
            self.clip.train()  # a single pass, as in training
            pixels = clip_pixels([self.views.views[self.chosen[i]] for i in new])
            features = self.clip.encode_vision_features(pixels.to(next(self.clip.parameters()).device)).cpu()
            self.clip.train(was_training)
            self.features.update(zip(new, features, strict=True))
        return [(self.features[i], self.targets[i]) for i in batch]


def collate_images(items: list, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make a batch for `CLIPTrainingModule` of a dataset's items, views or cached features, and its views' `texts`."""
    images, targets = zip(*items, strict=True)
    is_cached = isinstance(images[0], Tensor)
    inputs = {"features": torch.stack(images)} if is_cached else {"pixel_values": clip_pixels(images)}
    return {**inputs, "targets": torch.stack(targets), **texts}


def training_set(
    views: CaptionMatchingDataset, clip: CLIP, tokenizer, seed: int
) -> tuple[Dataset, Callable[[list], dict]]:
    """Return the dataset to train a CLIP on, and its collate function; `seed` draws the cached images."""
    dataset = views if clip.vision_is_trainable else CachedFeatureDataset(views, clip, seed)
    return dataset, partial(collate_images, texts=views.texts(tokenizer))
