"""What CLIP learns from: the views of a split, each with all captions that are true of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..labels.questions import captions, classify_caption
from ..labels.rows import CaptionDataset, drop_rows_without_image, parse_image_file
from ..labels.scene import build_scene
from ..models.clip import CLIP, class_prior_logits
from ..models.images import clip_pixels, load_views
from ..utils.errors import InputError
from ..utils.io import fingerprint
from ..utils.progress import progress_bar

MAX_CACHED_IMAGES = 6400  # views, at most, that an encoder which is not trained looks at: 12,800 are hardly better


def tokenize(texts: Sequence[str], tokenizer) -> dict[str, Tensor]:
    """input_ids and attention_mask [n, s] of the texts, each with the end token, as the grader makes them."""
    encoded = tokenizer([text + tokenizer.eos_token for text in texts], padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


class CaptionMatchingDataset(Dataset):
    """The views that a split has captions of, each with the captions that are true of it.

    A split's captions are few and true of many views, so what is true is asked of the scenes, not of the
    file's rows: another view's caption is no negative where it is true here too.
    """

    def __init__(self, rows: Sequence[dict], data_dir: Path, cache_dir: Path | None = None):
        from ..labels.frame_info import read_frame_info

        true: dict[str, set[str]] = {}
        for row in rows:
            true.setdefault(row["image_file"], set()).add(row["caption"])
        infos: dict[str, dict] = {}
        for image, known in progress_bar(true.items(), desc="reading frames", unit="view", delay=1):
            frame, view = parse_image_file(image)
            file = data_dir / f"{frame}_info.json"
            if frame not in infos and file.exists():
                infos[frame] = read_frame_info(file)
            if frame in infos:
                if view >= len(infos[frame]["detections"]):
                    raise InputError(file, f"no view {view}", f"take {image} out of the captions")
                known.update(captions(build_scene(infos[frame], view)))
        self.captions = sorted(set().union(*true.values()))
        index = {caption: i for i, caption in enumerate(self.captions)}
        self.truth = torch.zeros(len(true), len(self.captions))
        for row, known in enumerate(true.values()):
            self.truth[row, [index[caption] for caption in known]] = 1
        self.images = list(true)
        self.views = load_views([data_dir / image for image in self.images], cache_dir)

    @classmethod
    def of_split(cls, split: str, data_dir: Path) -> "CaptionMatchingDataset":
        """Every caption of a split's *_captions.json whose image is there."""
        return cls(drop_rows_without_image(CaptionDataset(split, data_dir)), data_dir, data_dir / ".cache")

    def texts(self, tokenizer) -> dict[str, Tensor]:
        """What all batches share: input_ids and attention_mask [n, s] of the captions, and their log_odds [n]."""
        prior_logits = class_prior_logits(self.truth, [classify_caption(caption) for caption in self.captions])
        return tokenize(self.captions, tokenizer) | {"prior_logits": prior_logits}

    def digest(self) -> str:
        """Of what is learned: images by name, captions, which are true of which."""
        true = (",".join(map(str, row.nonzero()[:, 0].tolist())) for row in self.truth)
        return fingerprint([*self.images, *self.captions, *true])

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, i: int) -> tuple[np.ndarray, Tensor]:
        """(view [100, 150, 3] of uint8, truth [captions])."""
        return self.views[i], self.truth[i]


def collate_images(items: list, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Items of `CaptionMatchingDataset` and its `texts` -> a batch for `CLIPTrainingModule`."""
    views, truth = zip(*items, strict=True)
    return {"pixel_values": clip_pixels(views), "truth": torch.stack(truth), **texts}


class CachedFeatureDataset(Dataset):
    """Captioned views by what they show to a CLIP that is not trained to see, so that one look at each is enough.

    Args:
        captioned: `MAX_CACHED_IMAGES` of its views are taken by chance, or all.
        clip: looks at a view once it is asked for.
        seed: of the choice.
    """

    def __init__(self, captioned: CaptionMatchingDataset, clip: CLIP, seed: int):
        chosen = torch.randperm(len(captioned), generator=torch.Generator().manual_seed(seed))[:MAX_CACHED_IMAGES]
        self.captioned, self.clip, self.chosen, self.truth = captioned, clip, chosen.tolist(), captioned.truth[chosen]
        self.shown: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """(shown [width] on the CPU, truth [captions])."""
        return self.__getitems__([i])[0]

    def __getitems__(self, batch: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Of a batch; torch's loader asks for it. Its views that were not seen before are looked at together."""
        new = [i for i in dict.fromkeys(batch) if i not in self.shown]
        if new:
            self.shown.update(zip(new, self._look(new), strict=True))
        return [(self.shown[i], self.truth[i]) for i in batch]

    @torch.no_grad()
    def _look(self, new: Sequence[int]) -> Tensor:
        """One look at each, as in training mode: [new, width], on the CPU."""
        was_training = self.clip.training
        self.clip.train()
        pixels = clip_pixels([self.captioned.views[self.chosen[i]] for i in new])
        shown = self.clip.look(pixels.to(next(self.clip.parameters()).device)).cpu()
        self.clip.train(was_training)
        return shown


def collate_features(items: list, texts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Items of `CachedFeatureDataset` and its views' `texts` -> a batch for `CLIPTrainingModule`."""
    shown, truth = zip(*items, strict=True)
    return {"shown": torch.stack(shown), "truth": torch.stack(truth), **texts}
