"""A split in memory, and batches of it with augmentation for training from scratch."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from homework.preprocess import load_views, normalise
from homework.scene import VIEW_SIZE, Scene, image_file, info_files, scenes

from .targets import KART_ID, cell_targets, image_targets, mirror

# The columns that the grader's CLIP crop shows (the middle square of a 150x100 view).
CROP = ((VIEW_SIZE[0] - VIEW_SIZE[1]) // 2, VIEW_SIZE[1])

PASTE = 0.4  # share of the views whose ego kart is replaced by another view's


class Frames:
    """The views of splits (or of some of their frames) with everything the stages learn from.

    views [n, 100, 150, 3] uint8; scenes, files: n long; `targets[mirrored][cropped]` as in `targets.py`.
    """

    def __init__(self, data_dir: Path, splits: list[str], keep=lambda index: True):
        self.files, self.scenes = [], []
        for split in splits:
            for index, path in enumerate(info_files(data_dir / split)):
                if keep(index):
                    for view, scene in scenes(path):
                        self.files.append(image_file(path, view))
                        self.scenes.append(scene)
        self.views = np.array(load_views([data_dir / file for file in self.files], data_dir / ".cache"))
        self.targets = []
        for flipped in (False, True):
            version = [mirror(scene) for scene in self.scenes] if flipped else self.scenes
            image = image_targets(version)
            self.targets.append([image | cell_targets(version), image | cell_targets(version, *CROP)])
        self.alone = [i for i, s in enumerate(self.scenes) if len(s.karts) == 1 and self._can_be_pasted(s)]

    def __len__(self) -> int:
        return len(self.files)

    @staticmethod
    def _can_be_pasted(scene: Scene) -> bool:
        x1, y1, x2, y2 = scene.ego.box
        return x2 - x1 >= 10 and y2 - y1 >= 10 and scene.ego.name in KART_ID

    def batch(
        self, index: np.ndarray, mirrored: bool = False, cropped: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels [b, 3, 100, 150 or 100] and targets, as they are."""
        views = self.views[index]
        if mirrored:
            views = views[:, :, ::-1]
        if cropped:
            views = views[:, :, CROP[0] : CROP[0] + CROP[1]]
        targets = {k: torch.from_numpy(v[index]) for k, v in self.targets[mirrored][cropped].items()}
        return normalise(views), targets

    def augmented(
        self, rng: np.random.Generator, size: int, paste: float = PASTE, crop: float = 0.2
    ) -> tuple[Tensor, dict[str, Tensor], np.ndarray, bool]:
        """A random batch: mirrored half of the time, some ego karts replaced, light and colour varied.

        Returns:
            pixels and targets as in `batch`; the views' indices; whether they are mirrored. The targets'
            `ego_from` [b] is the index of the view whose ego kart it shows.
        """
        index = rng.integers(len(self), size=size)
        mirrored, cropped = bool(rng.random() < 0.5), bool(rng.random() < crop)
        views, donors = self.views[index], index.copy()
        for row, i in enumerate(index):
            if rng.random() < paste:
                donor = self.alone[rng.integers(len(self.alone))]
                if self._paste(views[row], self.scenes[i], donor):
                    donors[row] = donor
        if mirrored:
            views = views[:, :, ::-1]
        if cropped:
            views = views[:, :, CROP[0] : CROP[0] + CROP[1]]
        targets = {k: torch.from_numpy(v[index]) for k, v in self.targets[mirrored][cropped].items()}
        for row in np.flatnonzero(donors != index):
            old, new = (KART_ID[self.scenes[i[row]].ego.name] for i in (index, donors))
            targets["ego"][row] = new
            kart, token = targets["kart"][row], targets["token"][row]
            kart[kart == old] = new
            moved = token[:, old].clone()  # old and new may be the same kart
            token[:, old] = False
            token[:, new] |= moved
        targets["ego_from"] = torch.from_numpy(donors)
        return jitter(normalise(views), rng), targets, index, mirrored

    def _paste(self, view: np.ndarray, scene: Scene, donor: int) -> bool:
        """Put the donor view's ego kart in the place of this one's, where that keeps every label right."""
        if scene.ego is None or not self._can_be_pasted(scene):
            return False
        x1, y1, x2, y2 = scene.ego.box
        name = self.scenes[donor].ego.name
        for other in scene.others:
            a1, b1, a2, b2 = other.box
            if other.name == name or (a1 <= x2 and x1 <= a2 and b1 <= y2 and y1 <= b2):
                return False
        u1, v1, u2, v2 = self.scenes[donor].ego.box
        patch = Image.fromarray(self.views[donor][v1 : v2 + 1, u1 : u2 + 1])
        target = view[y1 : y2 + 1, x1 : x2 + 1]
        height, width = target.shape[:2]
        patch = np.asarray(patch.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
        y, x = (np.abs(np.linspace(-1, 1, n)) ** 4 for n in (height, width))
        alpha = np.clip((1.15 - y[:, None] - x[None]) / 0.3, 0, 1)[..., None]  # a box with soft, round corners
        target[:] = alpha * patch + (1 - alpha) * target
        return True


def jitter(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Random gain a channel, offset, contrast and noise a view; on normalised pixels [b, 3, h, w]."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))

    mean = pixels.mean((2, 3), keepdim=True)
    pixels = (pixels - mean) * uniform(0.7, 1.3, b, 1, 1, 1) + mean
    pixels = pixels * uniform(0.85, 1.15, b, 3, 1, 1) + uniform(-0.2, 0.2, b, 1, 1, 1)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    return (pixels + noise * uniform(0, 0.04, b, 1, 1, 1)).clamp_(-1, 1)
