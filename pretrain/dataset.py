"""A split in memory, and batches of it with augmentation for training from scratch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from homework.labels.duplicates import state_key
from homework.labels.frame_info import read_frame_info
from homework.labels.rows import check_not_eval_split, image_file, info_files
from homework.labels.scene import MIN_KART_SIZE_PX, VIEW_SIZE, Kart, Scene
from homework.models.images import load_views, normalise
from homework.models.tux_nano.vision import FOVEA_SIZE

from .annotated_scene import LEAST_SIDE, Seen, mirror, seen
from .augment import jitter, random_window, zoomed
from .copy_paste import hidden, overlap, pasted, seen_of, stretch
from .targets import KART_ID, Grid, cell_targets, image_targets, kart_maps, token_targets

# The columns that the grader's CLIP crop shows (the middle square of a 150x100 view).
CROP = ((VIEW_SIZE[0] - VIEW_SIZE[1]) // 2, VIEW_SIZE[1])

PASTE = 0.3  # share of the views whose ego kart is replaced by another view's
DONORS = 8  # views that are looked at for one whose ego kart fits
ZOOMED = 0.5  # share of the views of which a part is taken for the whole
ADDED, MOST_ADDED = 0.4, 6  # share of the views that get far karts of other views, and at most how many
AHEAD = 0.5  # share of the added karts that stand ahead of the view's nearest kart
FAR, MIDDLE = 12, 18  # pixels: the shorter side of a box under which a kart is far, and one like those that are added
LEAST_SEEN = 0.4  # of an added kart: the share that others may not cover
WINDOW_KARTS = 8  # how many karts are tried in a window of the fovea's size
WINDOW_TOPS = 8, 56  # rows of the view where windows begin: from the first, to before the second
CROWDED = 1.0  # by how much a view's chance grows with each kart beside the first and each far one, up to
HARDEST = 4


HELD_OUT = 20  # every 20th moment of a split is kept for choosing; valid is only for measuring


class Frames:
    """The views of splits (or of some of their moments) with everything the stages learn from.

    views [n, 100, 150, 3] uint8; scenes, files, labels, times: n long; a label is (the frame's info, the view's
    number), times is how many pictures of a split show the view's moment.

    Args:
        data_dir, splits: folders; those with a plus between them (own+more) are drawn from as one.
        keep: takes a moment's number within its split, from 0; frames that repeat a moment are one.
    """

    def __init__(self, data_dir: Path, splits: list[str], keep: Callable[[int], bool] = lambda moment: True):
        self.files, self.scenes, self.labels, self.times, chances = [], [], [], [], []
        for split in splits:
            times = [count for part in split.split("+") for count in self._read(data_dir / part, keep)]
            self.times += times
            # a moment that was taken n times over counts as sqrt(n) moments: its pictures are all the same
            of_split = np.array(times) ** -0.5
            chances += (of_split / of_split.sum()).tolist()
        self.views = np.array(load_views([data_dir / file for file in self.files], data_dir / ".cache"))
        self.chances = np.array(chances)
        self.hardness = np.array([_hardness(scene) for scene in self.scenes])
        self.places = [kart.box for scene in self.scenes for kart in scene.all_karts if kart.min_side < MIDDLE]
        alone = [i for i, scene in enumerate(self.scenes) if len(scene.karts) == 1 and self._can_be_pasted(scene)]
        self.alone = np.array(alone, dtype=int)
        self.alone_chances = _each_as_often([self.scenes[i].ego.name for i in alone], self.chances[self.alone])

    def _read(self, folder: Path, keep: Callable[[int], bool]) -> list[int]:
        """Append a split's views; gives how many times each view's moment was taken."""
        moments, known = [], {}
        for path in info_files(folder):
            info = read_frame_info(path)
            moment = state_key(info, path) if "distance_down_track" in info else path
            if not keep(known.setdefault(moment, len(known))):
                continue
            for view in range(len(info["detections"])):
                self.files.append(image_file(path, view))
                self.scenes.append(seen(info, view))
                self.labels.append((info, view))
                moments.append((moment, view))
        times = Counter(moments)
        return [times[moment] for moment in moments]

    def __len__(self) -> int:
        return len(self.files)

    @staticmethod
    def _can_be_pasted(scene: Scene) -> bool:
        if scene.ego is None:
            return False
        return scene.ego.min_side >= 10 and scene.ego.name in KART_ID

    def batch(self, index: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels [b, 3, 100, 150] and targets (see `targets.py`) of views as they are."""
        return normalise(self.views[index]), targets_of([self.scenes[i] for i in index])

    def augmented(
        self,
        rng: np.random.Generator,
        size: int,
        paste: float = PASTE,
        crop: float = 0.2,
        zoom: float = ZOOMED,
        crowded: float = 0.0,
        added: float = ADDED,
    ) -> tuple[Tensor, dict[str, Tensor], list[Seen]]:
        """A random batch of augmented views, each split as often as any other.

        Parts of views are taken for the whole, some ego karts replaced, far karts added, half of the views mirrored,
        light and colour varied.

        Args:
            rng: of everything.
            size: views.
            paste: share of the views whose ego kart is replaced.
            crop: share of the batches that show the middle columns only, as the grader's CLIP crop does.
            zoom: share of the views of which a part is taken for the whole.
            crowded: by how much a view's chance grows with each kart beside the first and each far one.
            added: share of the views that get far karts.

        Returns:
            pixels [b, 3, 100, 150 or 100], targets as in `batch`, and the scenes that they are of.
        """
        views, batch_scenes = [], []
        chosen = self._choose(rng, size, self.chances * (1 + crowded * self.hardness))
        donors = self._donors(rng, size)
        for i, candidates in zip(chosen, donors, strict=True):
            view, of_view = self.views[i], self.scenes[i]
            if rng.random() < zoom:
                view, of_view = zoomed(view, *self.labels[i], random_window(rng))
            if rng.random() < paste:
                view, of_view = self._paste(view, of_view, candidates, rng.random())
            if self.places and rng.random() < added:
                view, of_view = self._add(view, of_view, self._places(of_view, rng), donors.ravel(), rng)
            if rng.random() < 0.5:
                view, of_view = view[:, ::-1], mirror(of_view)
            views.append(view)
            batch_scenes.append(of_view)
        part = CROP if rng.random() < crop else (0, VIEW_SIZE[0])
        pixels = normalise(np.stack(views)[:, :, part[0] : part[0] + part[1]])
        return jitter(pixels, rng), targets_of(batch_scenes, *part), batch_scenes

    @staticmethod
    def _choose(rng: np.random.Generator, size: int, chances: np.ndarray) -> np.ndarray:
        return rng.choice(len(chances), size, p=chances / chances.sum())

    def _donors(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Views whose ego kart may come into another, each kart as often as any other. [size, DONORS]."""
        return self.alone[self._choose(rng, size * DONORS, self.alone_chances)].reshape(size, DONORS)

    def _paste(
        self, view: np.ndarray, scene: Seen, candidates: np.ndarray, matched: float = 0.0
    ) -> tuple[np.ndarray, Seen]:
        """The ego kart of the candidate views whose box is most like this one's in its place.

        The view stays as it is where another label would change with the kart. `matched`: see `pasted`.
        """
        if not self._can_be_pasted(scene):
            return view, scene
        donor = min(candidates, key=lambda i: stretch(self.scenes[i].ego.box, scene.ego.box))
        name = self.scenes[donor].ego.name
        if any(other.name == name or overlap(other.box, scene.ego.box) for other in scene.others):
            return view, scene
        view = pasted(view, scene.ego.box, self.views[donor], self.scenes[donor].ego.box, matched)
        karts = [kart._replace(name=name) if kart is scene.ego else kart for kart in scene.karts]
        return view, replace(scene, karts=tuple(karts))

    def _places(self, scene: Scene, rng: np.random.Generator) -> list[tuple]:
        """Boxes of far karts of other views, some of them brought to the columns of the nearest kart."""
        boxes = [self.places[i] for i in rng.integers(len(self.places), size=rng.integers(1, MOST_ADDED + 1))]
        near = max(scene.karts, key=lambda kart: kart.min_side, default=None)
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            if near is not None and rng.random() < AHEAD:
                middle = near.center[0] + rng.uniform(-0.6, 0.6) * (near.box[2] - near.box[0])
                left = round(np.clip(middle - (x2 - x1) / 2, 0, VIEW_SIZE[0] - 1 - (x2 - x1)))
                boxes[i] = left, y1, left + x2 - x1, y2
        return boxes

    def _add(
        self, view: np.ndarray, scene: Seen, boxes: list[tuple], donors: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, Seen]:
        """More karts in the boxes, behind the larger ones that are there: larger ego karts of other views, shrunk.

        A box is left out where its kart would cover another, be covered itself, or be the second of its name. Some are
        too small to count, as in the views themselves: else whatever is added would.
        """
        karts, small = list(scene.karts), list(scene.small)
        for box in boxes:
            donor = min(rng.choice(donors, DONORS), key=lambda i: stretch(self.scenes[i].ego.box, box))
            name, side = self.scenes[donor].ego.name, min(box[2] - box[0], box[3] - box[1])
            near = [kart for kart in karts if overlap(kart.box, box)]
            if any(kart.name == name for kart in (*karts, *small)) or any(kart.min_side < 1.2 * side for kart in near):
                continue
            covered = np.zeros(view.shape[:2], dtype=bool)
            for kart in near:
                covered |= hidden(kart.box, covered.shape)
            visible, share = seen_of(box, covered)
            kart = Kart(len(karts), name, visible)
            if share >= LEAST_SEEN and kart.min_side >= LEAST_SIDE:
                view = pasted(view, box, self.views[donor], self.scenes[donor].ego.box, rng.random(), covered)
                (karts if kart.is_large_enough else small).append(kart)
        return view, replace(scene, karts=tuple(karts), small=tuple(small))

    def windows(self, rng: np.random.Generator, size: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A random batch of windows of the fovea's size, full of small karts.

        Returns:
            pixels [b, 3, h, w], and kart, weight and token of `targets.py`, as for the fovea.
        """
        (width, height), views, targets = FOVEA_SIZE, [], []
        donors = self._donors(rng, size).ravel()
        for i in self._choose(rng, size, self.chances * (1 + CROWDED * self.hardness)):
            view, of_view = self.views[i], self.scenes[i]
            if rng.random() < 0.5:
                view, of_view = view[:, ::-1], mirror(of_view)
            left, top = int(rng.integers(VIEW_SIZE[0] - width + 1)), int(rng.integers(*WINDOW_TOPS))
            boxes = [self._somewhere(left, top, rng) for _ in range(WINDOW_KARTS)]
            view, of_view = self._add(view, of_view, boxes, donors, rng)
            views.append(view[top : top + height, left : left + width])
            fine, coarse = (Grid(left, top, width, height, stride) for stride in (4, 8))
            targets.append(kart_maps([of_view], fine) | token_targets([of_view], coarse))
        stacked = {
            name: torch.from_numpy(np.concatenate([target[name] for target in targets]))
            for name in ("kart", "weight", "token")
        }
        return jitter(normalise(np.stack(views)), rng), stacked

    def _somewhere(self, left: int, top: int, rng: np.random.Generator) -> tuple:
        """A box shaped like a far kart's, up to twice as large, with its middle in the window from there."""
        x1, y1, x2, y2 = self.places[rng.integers(len(self.places))]
        scale = rng.uniform(0.7, 2)
        sides = np.maximum(MIN_KART_SIZE_PX, np.round(np.array([x2 - x1, y2 - y1]) * scale).astype(int))
        corner = rng.integers((left, top), np.add((left, top), FOVEA_SIZE)) - sides // 2
        corner = np.clip(corner, 0, np.array(VIEW_SIZE) - 1 - sides)
        return *corner.tolist(), *(corner + sides).tolist()


def training_frames(data: str, splits: str, held_out: bool = False) -> Frames:
    """Those to train on, or those that are held out.

    Args:
        data: the data folder.
        splits: names with commas between them, see `Frames`.

    Raises:
        InputError: one of them is for measuring alone.
    """
    for name in splits.replace("+", ",").split(","):
        check_not_eval_split(name)
    return Frames(Path(data), splits.split(","), lambda moment: (moment % HELD_OUT == 0) == held_out)


def _each_as_often(names: list[str], chances: np.ndarray) -> np.ndarray:
    """Chances [n] of things with names, changed so that those of each name add up to 1.

    Two karts are in the course's `train` alone: else a tower would learn that views of its look are all that has them.
    """
    _, of_name = np.unique(names, return_inverse=True)
    return chances / np.bincount(of_name, chances)[of_name]


def _hardness(scene: Scene) -> int:
    """How many karts there are beside the first, and far ones among all; at most HARDEST."""
    far = sum(kart.min_side < FAR for kart in scene.karts)
    return int(np.clip(len(scene.karts) - 1 + far, 0, HARDEST))


def targets_of(scenes: list[Seen], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, Tensor]:
    """All targets of `targets.py`, for the image's columns `left` to `left + width`."""
    arrays = image_targets(scenes) | cell_targets(scenes, left, width)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
