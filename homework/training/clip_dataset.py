"""CLIP's training: views with all captions that are true of them, and the module that learns to match them."""

import logging
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import chain
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
from .held_out import drop_held_out
from .lora import PeftTrainingModule, add_lora

logger = logging.getLogger(__name__)

MAX_CACHED_IMAGES = 6400  # images, at most, whose features are cached; 12,800 are hardly better
MAX_BATCH_CAPTIONS = 192  # the course's data set has 120 different captions, and its karts, tracks and numbers make 131
MIN_OTHER_CAPTIONS = MAX_BATCH_CAPTIONS // 4  # of these, at least, false for all images of the batch, if there are any


class CLIPTrainingModule(PeftTrainingModule):
    """A CLIP with LoRA that maps images and captions to the loss."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        prior_logits: Tensor,
        weights: Tensor,
        pixel_values: Tensor | None = None,
        features: Tensor | None = None,
    ) -> dict:
        """Return the `loss` of a batch.

        Args:
            input_ids, attention_mask: of the captions, [n, s].
            targets: which captions are true of which image, [b, n].
            prior_logits: see `class_prior_logits`, [n].
            weights: of the captions in the loss, [n].
            pixel_values: the images, [b, 3, 192, 192]; or
            features: of the images, see `CLIP.encode_vision_features`, [b, width].
        """
        features = self.base.encode_vision_features(pixel_values) if features is None else features
        image_features = self.base.project_image(features)
        text_features = self.base.encode_text(input_ids, attention_mask)
        return {"loss": self.base.loss(image_features, text_features, targets, prior_logits, weights)}

    def save_adapter(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        super().save_adapter(folder, dtype)
        self.base.save_pretrained(folder, dtype)

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

    Captions repeat across images, so one from another image is a negative only if it is false here. Of each type, the
    rows decide for the images for which they hold one, and the label rule for all others.

    Attributes:
        captions: all different ones, sorted.
        caption_ids: of each view, the sorted indices of the true ones.
    """

    def __init__(self, rows: Sequence[dict], data_dir: Path, cache_dir: Path | None = None):
        true_captions: dict[str, set[str]] = {}
        for row in rows:
            true_captions.setdefault(row["image_file"], set()).add(row["caption"])
        read, classify, disagreeing = lru_cache(read_frame_info), cache(classify_caption), []
        for image, known in progress_bar(true_captions.items(), desc="reading frames", unit="view", delay=1):
            if (data_dir / f"{parse_image_file(image)[0]}_info.json").exists():
                by_rule = set(captions(read_scene(image, data_dir, read)))
                if any(classify(caption) != "other" for caption in known - by_rule):
                    disagreeing.append(image)
                types = {classify(caption) for caption in known}
                known.update(caption for caption in by_rule if classify(caption) not in types)
        if disagreeing:
            views = f"{len(disagreeing)} of {len(true_captions)} views, e.g. {disagreeing[0]}"
            logger.info(f"the captions of {views}, disagree with the label rule; they are used as they are")
        self.captions = sorted(set().union(*true_captions.values()))
        index = {caption: i for i, caption in enumerate(self.captions)}
        self.caption_ids = [sorted(index[caption] for caption in known) for known in true_captions.values()]
        self.images = list(true_captions)
        self.views = load_views([data_dir / image for image in self.images], cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path, pairs_dir: str | None = None) -> "CaptionMatchingDataset":
        """Read a split's *_captions.json, by default in the data folder; images must exist and not be held out."""
        rows = drop_held_out(drop_rows_without_image(CaptionDataset(split, data_dir, pairs_dir)), data_dir, split)
        return cls(rows, data_dir, data_dir / ".cache")

    def texts(self, tokenizer) -> dict[str, Tensor]:
        """Return what batches draw from: the captions' input_ids and attention_mask [n, s], and prior_logits [n]."""
        counts = torch.bincount(torch.tensor([*chain(*self.caption_ids)]), minlength=len(self.captions))
        types = [classify_caption(caption) for caption in self.captions]
        return tokenize(self.captions, tokenizer) | {"prior_logits": class_prior_logits(counts / len(self), types)}

    def fingerprint(self) -> str:
        """Return a digest of images by name, captions, and which are true of which."""
        true = (",".join(map(str, ids)) for ids in self.caption_ids)
        return fingerprint([*self.images, *self.captions, *true])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, list[int]]:
        """Return a view [100, 150, 3] uint8 and the indices of its true captions."""
        return self.views[i], self.caption_ids[i]


class CachedFeatureDataset(Dataset):
    """Views as the features of a CLIP whose vision part is frozen, so that each image is encoded once.

    Args:
        views: `MAX_CACHED_IMAGES` of them are drawn, or all are taken.
        clip: encodes an image when it is first needed.
        seed: of the draw.
    """

    def __init__(self, views: CaptionMatchingDataset, clip: CLIP, seed: int):
        chosen = torch.randperm(len(views), generator=torch.Generator().manual_seed(seed))[:MAX_CACHED_IMAGES]
        self.views, self.clip, self.chosen = views, clip, chosen.tolist()
        self.features: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[Tensor, list[int]]:
        """Return features [width] on the CPU and the indices of the view's true captions."""
        return self.__getitems__([i])[0]

    @torch.no_grad()
    def __getitems__(self, batch: Sequence[int]) -> list[tuple[Tensor, list[int]]]:
        """Return a batch, which torch's loader asks for as one; its new images are encoded together."""
        new = [i for i in dict.fromkeys(batch) if i not in self.features]
        if new:
            was_training = self.clip.training
            self.clip.train()  # a single pass, as in training
            pixels = clip_pixels([self.views.views[self.chosen[i]] for i in new])
            features = self.clip.encode_vision_features(pixels.to(next(self.clip.parameters()).device)).cpu()
            self.clip.train(was_training)
            self.features.update(zip(new, features, strict=True))
        return [(self.features[i], self.views.caption_ids[self.chosen[i]]) for i in batch]


def sample_captions(true_ids: Sequence[int], num_captions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose the captions of a batch: all, or `MAX_BATCH_CAPTIONS` where there are more, so that its cost is bounded.

    Captions that are true of one of the batch's images are preferred. Both these and the others are drawn evenly, and
    each drawn one weighs as many as it stands for (Horvitz and Thompson 1952): so the expected loss is that of all.

    Args:
        true_ids: captions of the batch's images; the draw depends on them and on `seed` alone, so that a resumed run
            draws as an uninterrupted one.

    Returns:
        their indices, sorted, and their weights in the loss. [n], [n].
    """
    if num_captions <= MAX_BATCH_CAPTIONS:
        return torch.arange(num_captions), torch.ones(num_captions)
    generator = torch.Generator().manual_seed(seed + zlib.crc32(np.array(true_ids).tobytes()))
    is_true = torch.zeros(num_captions, dtype=torch.bool)
    is_true[true_ids] = True
    order = torch.randperm(num_captions, generator=generator)
    true, others = order[is_true[order]], order[~is_true[order]]
    true_drawn = true[: MAX_BATCH_CAPTIONS - min(MIN_OTHER_CAPTIONS, len(others))]
    others_drawn = others[: MAX_BATCH_CAPTIONS - len(true_drawn)]
    weights = torch.ones(num_captions)
    weights[true_drawn], weights[others_drawn] = len(true) / len(true_drawn), len(others) / max(1, len(others_drawn))
    chosen = torch.cat([true_drawn, others_drawn]).sort().values
    return chosen, weights[chosen]


def collate_images(items: list, texts: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Make a batch for `CLIPTrainingModule`.

    Args:
        items: of a dataset, views or cached features.
        texts: of its views; see `sample_captions` for those that the batch gets.
        seed: of that sample.
    """
    images, caption_ids = zip(*items, strict=True)
    is_cached = isinstance(images[0], Tensor)
    inputs = {"features": torch.stack(images)} if is_cached else {"pixel_values": clip_pixels(images)}
    num_captions = len(texts["prior_logits"])
    targets = torch.zeros(len(items), num_captions)
    for target, ids in zip(targets, caption_ids, strict=True):
        target[ids] = 1
    chosen, weights = sample_captions([*chain(*caption_ids)], num_captions, seed)
    texts = {name: values[chosen] for name, values in texts.items()}
    is_used = texts["attention_mask"].any(0)  # padding that only longer captions need
    texts |= {name: texts[name][:, is_used] for name in ("input_ids", "attention_mask")}
    return {**inputs, "targets": targets[:, chosen], "weights": weights, **texts}


def training_set(
    views: CaptionMatchingDataset, clip: CLIP, tokenizer, seed: int
) -> tuple[Dataset, Callable[[list], dict]]:
    """Return the dataset to train a CLIP on, and its collate function; `seed` draws cached images and captions."""
    dataset = views if clip.vision_is_trainable else CachedFeatureDataset(views, clip, seed)
    return dataset, partial(collate_images, texts=views.texts(tokenizer), seed=seed)
