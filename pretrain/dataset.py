"""Labelled views, and augmented batches of them for training from scratch."""

import bisect
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from homework.labels.duplicates import moment_key
from homework.labels.rows import check_not_eval_split
from homework.labels.scene import MIN_KART_SIZE_PX, VIEW_SIZE, Kart, Scene
from homework.models.images import normalise
from homework.models.tux_nano.vision import FOVEA_SIZE

from . import augment
from .augment import Box
from .config import AugmentConfig, RunConfig
from .packs import PackedViews, pack_split, read_pack
from .targets import (
    KART_ID,
    MIN_VISIBLE_SIZE_PX,
    AnnotatedScene,
    annotated_scene,
    cell_targets,
    image_targets,
    window_targets,
)

MIN_SOURCE_SIZE_PX = 10  # smaller karts are not pasted elsewhere, nor replaced
CENTER_CROP = ((VIEW_SIZE[0] - VIEW_SIZE[1]) // 2, VIEW_SIZE[1])  # left and width of the grader's CLIP crop

LabelledView = tuple[np.ndarray, AnnotatedScene]  # pixels [100, 150, 3] uint8, and what they show


class PretrainDataset:
    """The views of splits, or of some of their game states, with everything that the stages learn from.

    Attributes:
        views: n images, [100, 150, 3] uint8 each.
        scenes, files, labels, moments: n long; a label is (the frame's info, the view's number).
        num_duplicates: n numbers of images of the split that show the same moment from the same camera.
        probs: [n], the probability of each view, up to a factor.

    Args:
        data_dir: the data folder.
        weights: how often the views of each of its folders are drawn, see `SourceConfig`.
        keep: whether to keep a moment, by its number within its split, from 0.
    """

    def __init__(
        self,
        data_dir: Path,
        weights: dict[str, float],
        keep: Callable[[int], bool] = lambda moment: True,
    ):
        self.files, self.scenes, self.labels, self.moments, self.num_duplicates = [], [], [], [], []
        jpegs, probs = [], []
        for split, weight in weights.items():
            jpegs += self._read(pack_split(data_dir, split), keep)
            self.num_duplicates += (counts := self._count_duplicates(len(self.num_duplicates)))
            # n duplicates weigh as much as sqrt(n) unique frames, since they are all the same
            shares = np.array(counts) ** -0.5
            probs += (weight * shares / shares.sum()).tolist()
        self.views, self.probs = PackedViews(jpegs), np.array(probs)
        self.hardness = np.array([_hardness(scene) for scene in self.scenes])
        karts = [kart for scene in self.scenes for kart in scene.all_karts]
        self.boxes = sorted([kart.box for kart in karts], key=augment.short_side)
        sources = [i for i, scene in enumerate(self.scenes) if len(scene.karts) == 1 and _has_pastable_ego(scene)]
        self.sources = np.array(sources, dtype=int)  # views of a single kart, which nothing covers
        self.source_probs = _balance_classes([self.scenes[i].ego.name for i in sources], self.probs[self.sources])

    def _read(self, packs: list[Path], keep: Callable[[int], bool]) -> list[np.ndarray]:
        """Append a split's views, and return the bytes of their images."""
        kept, known = [], {}
        for pack in packs:
            frames, jpegs = read_pack(pack)
            jpegs = iter(jpegs)
            for frame in frames:
                images = list(itertools.islice(jpegs, len(frame.info["detections"])))
                moment = moment_key(frame.info, frame.name)
                if not keep(known.setdefault(moment, len(known))):
                    continue
                for view, image in enumerate(images):
                    self.files.append(f"{frame.name}_{view:02d}_im.jpg")
                    self.scenes.append(annotated_scene(frame.info, view))
                    self.labels.append((frame.info, view))
                    self.moments.append(moment)
                    kept.append(image)
        return kept

    def _count_duplicates(self, start: int) -> list[int]:
        """Count each view's duplicates among the views from `start` on, which are one split's."""
        keys = [(moment, view) for moment, (_, view) in zip(self.moments[start:], self.labels[start:], strict=True)]
        counts = Counter(keys)
        return [counts[key] for key in keys]

    def __len__(self) -> int:
        return len(self.files)

    def get_batch(self, index: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """Return pixels [b, 3, 100, 150] and targets (see `targets.py`) of views without augmentation."""
        return normalise(np.stack([self.views[i] for i in index])), build_targets([self.scenes[i] for i in index])

    def sample_batch(
        self, rng: Generator, batch_size: int, config: AugmentConfig
    ) -> tuple[Tensor, list[AnnotatedScene], tuple[int, int]]:
        """Draw a random batch of augmented views.

        Returns:
            pixels [b, 3, 100, 150 or 100], the scenes of the whole views, and the first and the number of the columns
            that are shown.
        """
        views, scenes = [], []
        chosen = _choose(rng, batch_size, self._probs(config))
        sources = self._sample_sources(rng, batch_size)
        for i, candidates in zip(chosen, sources, strict=True):
            view, scene = self.views[i], self.scenes[i]
            if rng.random() < config.zoom_prob:
                info, number = self.labels[i]
                view, zoomed = augment.zoom_view(
                    view, info["detections"][number], augment.random_window(rng, config.max_zoom)
                )
                scene = annotated_scene(info | {"detections": [zoomed]}, 0)
            if rng.random() < config.swap_ego_prob:
                view, scene = self._swap_ego(view, scene, candidates, rng.random())
            if rng.random() < config.add_karts_prob:
                boxes = self._sample_boxes(scene, rng, config)
                view, scene = self._copy_paste(view, scene, boxes, sources.ravel(), rng, config.min_visible)
            if rng.random() < config.flip_prob:
                view, scene = view[:, ::-1], scene.mirror()
            views.append(view)
            scenes.append(scene)
        left, width = CENTER_CROP if rng.random() < config.center_crop_prob else (0, VIEW_SIZE[0])
        pixels = normalise(np.stack(views)[:, :, left : left + width])
        return augment.jitter_colors(pixels, rng, config), scenes, (left, width)

    def _probs(self, config: AugmentConfig) -> np.ndarray:
        """Return how often each view is drawn, up to a factor: those with many or far karts more often."""
        return self.probs * (1 + config.hardness_weight * self.hardness.clip(max=config.max_hardness))

    def _sample_sources(self, rng: Generator, batch_size: int) -> np.ndarray:
        """Draw views to copy karts from, each kart equally often. [batch_size, NUM_SOURCES]."""
        index = _choose(rng, batch_size * augment.NUM_SOURCES, self.source_probs)
        return self.sources[index].reshape(batch_size, augment.NUM_SOURCES)

    def _best_source(self, candidates: np.ndarray, box: Box) -> int:
        return min(candidates, key=lambda i: augment.aspect_mismatch(self.scenes[i].ego.box, box))

    def _swap_ego(
        self, view: np.ndarray, scene: AnnotatedScene, candidates: np.ndarray, light_match: float = 0.0
    ) -> LabelledView:
        """Replace the ego kart by the one of the candidate views whose box is most like it.

        The view stays as it is if another label would change with the kart.
        """
        if not _has_pastable_ego(scene):
            return view, scene
        source = self._best_source(candidates, scene.ego.box)
        name = self.scenes[source].ego.name
        if any(other.name == name or augment.has_overlap(other.box, scene.ego.box) for other in scene.others):
            return view, scene
        view = augment.paste_patch(view, scene.ego.box, self.views[source], self.scenes[source].ego.box, light_match)
        karts = [kart._replace(name=name) if kart is scene.ego else kart for kart in scene.karts]
        return view, replace(scene, karts=tuple(karts))

    def _sample_boxes(self, scene: Scene, rng: Generator, config: AugmentConfig) -> list[Box]:
        """Draw boxes of other views' karts; move some of them to the columns of the nearest kart, or to a border."""
        boxes = self._draw_boxes(rng, int(rng.integers(1, config.max_added + 1)), config)
        near = max(scene.karts, key=lambda kart: kart.min_side, default=None)
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            if near is not None and rng.random() < config.occluded_prob:
                center = near.center[0] + rng.uniform(-0.6, 0.6) * (near.box[2] - near.box[0])
                left = round(np.clip(center - (x2 - x1) / 2, 0, VIEW_SIZE[0] - 1 - (x2 - x1)))
                boxes[i] = left, y1, left + x2 - x1, y2
            elif rng.random() < config.border_prob:
                hidden = round(rng.uniform(*augment.BORDER_CUT) * (x2 - x1))
                left = -hidden if rng.random() < 0.5 else VIEW_SIZE[0] - 1 - (x2 - x1) + hidden
                boxes[i] = left, y1, left + x2 - x1, y2
        return boxes

    def _draw_boxes(self, rng: Generator, count: int, config: AugmentConfig) -> list[Box]:
        """Draw boxes of karts below the size for added ones; none if there are no such karts."""
        below = bisect.bisect_left(self.boxes, config.max_added_px, key=augment.short_side)
        return [self.boxes[i] for i in rng.integers(below, size=count)] if below else []

    def _copy_paste(
        self,
        view: np.ndarray,
        scene: AnnotatedScene,
        boxes: list[Box],
        sources: np.ndarray,
        rng: Generator,
        min_visible: float,
    ) -> LabelledView:
        """Add ego karts of other views in the boxes, behind the larger karts of the view.

        A box is skipped if its kart would cover another, be covered itself, or repeat a name. Some added karts are too
        small for the label rule, as in real views: otherwise whatever is added would be large enough.
        """
        karts, small = list(scene.karts), list(scene.small)
        for box in boxes:
            source = self._best_source(rng.choice(sources, augment.NUM_SOURCES), box)
            name, size, inside = (
                self.scenes[source].ego.name,
                augment.short_side(box),
                augment.clip_box(box, view.shape[:2]),
            )
            near = [kart for kart in karts if augment.has_overlap(kart.box, inside)]
            if any(kart.name == name for kart in (*karts, *small)) or any(kart.min_side < 1.2 * size for kart in near):
                continue
            occluded = np.zeros(view.shape[:2], dtype=bool)
            for kart in near:
                occluded |= augment.occlusion_mask(kart.box, occluded.shape)
            visible, share = augment.visible_box(inside, occluded)
            kart = Kart(len(karts), name, visible)
            if share >= min_visible and kart.min_side >= MIN_VISIBLE_SIZE_PX:
                source_box = self.scenes[source].ego.box
                view = augment.paste_patch(view, box, self.views[source], source_box, rng.random(), occluded)
                (karts if kart.is_large_enough else small).append(kart)
        return view, replace(scene, karts=tuple(karts), small=tuple(small))

    def sample_windows(
        self, rng: Generator, batch_size: int, config: AugmentConfig
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a random batch of windows of the fovea's size, full of small karts.

        Returns:
            pixels [b, 3, h, w], and the targets kart, weight and token as for the fovea.
        """
        (width, height), views, targets = FOVEA_SIZE, [], []
        sources = self._sample_sources(rng, batch_size).ravel()
        for i in _choose(rng, batch_size, self._probs(config)):
            view, scene = self.views[i], self.scenes[i]
            if rng.random() < config.flip_prob:
                view, scene = view[:, ::-1], scene.mirror()
            left, top = int(rng.integers(VIEW_SIZE[0] - width + 1)), int(rng.integers(*augment.WINDOW_TOP_PX))
            boxes = [self._place_box(box, left, top, rng) for box in self._draw_boxes(rng, config.window_karts, config)]
            view, scene = self._copy_paste(view, scene, boxes, sources, rng, config.min_visible)
            views.append(view[top : top + height, left : left + width])
            targets.append(window_targets([scene], left, top))
        names = ("kart", "weight", "token")
        stacked = {name: torch.from_numpy(np.concatenate([target[name] for target in targets])) for name in names}
        return augment.jitter_colors(normalise(np.stack(views)), rng, config), stacked

    def _place_box(self, box: Box, left: int, top: int, rng: Generator) -> Box:
        """Scale a box by 0.7 to 2, and centre it anywhere in the window that begins at left and top."""
        x1, y1, x2, y2 = box
        scale = rng.uniform(0.7, 2)
        sides = np.maximum(MIN_KART_SIZE_PX, np.round(np.array([x2 - x1, y2 - y1]) * scale).astype(int))
        corner = rng.integers((left, top), np.add((left, top), FOVEA_SIZE)) - sides // 2
        corner = np.clip(corner, 0, np.array(VIEW_SIZE) - 1 - sides)
        return *corner.tolist(), *(corner + sides).tolist()


def load_training_data(config: RunConfig, data_dir: Path, held_out: bool = False) -> PretrainDataset:
    """Load the views that a run trains on, or those of the moments that it holds out."""
    weights = {name: source.weight for name, source in config.sources.items() if source.weight}
    for name in weights:
        check_not_eval_split(name)
    return PretrainDataset(data_dir, weights, lambda moment: (moment % config.held_out_period == 0) == held_out)


def build_targets(scenes: list[AnnotatedScene], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, Tensor]:
    """Build all targets of `targets.py` for the image's columns from `left` to `left + width`."""
    arrays = image_targets(scenes) | cell_targets(scenes, left, width)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _choose(rng: Generator, size: int, weights: np.ndarray) -> np.ndarray:
    return rng.choice(len(weights), size, p=weights / weights.sum())


def _has_pastable_ego(scene: Scene) -> bool:
    return scene.ego is not None and scene.ego.min_side >= MIN_SOURCE_SIZE_PX and scene.ego.name in KART_ID


def _balance_classes(names: list[str], weights: np.ndarray) -> np.ndarray:
    """Scale weights [n] of named things so that those of each name add up to 1.

    Two karts are in the course's `train` alone: else the encoder would learn to expect them in its style only.
    """
    _, class_id = np.unique(names, return_inverse=True)
    return weights / np.bincount(class_id, weights)[class_id]


def _hardness(scene: Scene) -> int:
    """Count the karts beside the first and, once more, the far ones."""
    far = sum(kart.min_side < augment.FAR_MAX_SIZE_PX for kart in scene.karts)
    return max(0, len(scene.karts) - 1 + far)
