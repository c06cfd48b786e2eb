"""Scenes with all visible karts, and the dense targets of the vision encoder."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from homework.labels.game import KARTS, TRACKS
from homework.labels.scene import VIEW_SIZE, Kart, Scene, detected_karts
from homework.models.tux_nano.vision import FOVEA_SIZE, FOVEA_TOP

MIN_VISIBLE_SIZE_PX = 2  # of a box's shorter side: smaller karts are not visible
KART_ID = {name: index for index, name in enumerate(KARTS)}
TRACK_ID = {name: index for index, name in enumerate(TRACKS)}
BACKGROUND = len(KARTS)  # class of a cell without a kart
UNKNOWN = -1  # targets that no loss is computed for
MAX_COUNT = 9  # class of this number and of larger ones
KART_WEIGHT = 10  # loss weight of a kart of one cell; background cells weigh 1
SMALL_KART_WEIGHT = 3  # the same for a kart too small for the label rule
SIZE_THRESHOLDS_PX = (3, 4, 5, 6, 7)  # of a box's width, and of its height


@dataclass(frozen=True)
class AnnotatedScene(Scene):
    """A scene with the visible karts that are too small for the label rule as well.

    A single pixel decides whether a kart is large enough, so what is learned of a kart must not end there.
    """

    small: tuple[Kart, ...] = ()

    @property
    def all_karts(self) -> tuple[Kart, ...]:
        """Karts that are large enough for the label rule, then those that are not."""
        return self.karts + self.small

    def mirror(self) -> "AnnotatedScene":
        """Build the scene of the image flipped left to right."""
        flip = lambda x1, y1, x2, y2: (VIEW_SIZE[0] - x2, y1, VIEW_SIZE[0] - x1, y2)
        karts, small = ([k._replace(box=flip(*k.box)) for k in group] for group in (self.karts, self.small))
        return replace(self, karts=tuple(karts), small=tuple(small))


def annotated_scene(info: dict, view_index: int) -> AnnotatedScene:
    """Build the scene of a view by the label rule, as `build_scene`, with the karts that the rule leaves out."""
    karts = [kart for kart in detected_karts(info, view_index) if kart.min_side >= MIN_VISIBLE_SIZE_PX]
    large, small = (tuple(kart for kart in karts if kart.is_large_enough == counts) for counts in (True, False))
    return AnnotatedScene(info["track"], large, small)


@dataclass(frozen=True)
class Grid:
    """Cells of a map of a part of the view, in pixels. The first cell's centre is the part's top left corner."""

    left: int
    top: int
    width: int
    height: int
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of rows and columns."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    def find_cell(self, x: float, y: float) -> tuple[int, int] | None:
        """Find the cell (row, column) that holds a point of the view; None for a point outside the part."""
        x, y = x - self.left, y - self.top
        if not (0 <= x < self.width and 0 <= y < self.height):
            return None
        row, column = (min(round(at / self.stride), n - 1) for at, n in zip((y, x), self.shape, strict=True))
        return row, column

    def find_cells(self, x1: float, y1: float, x2: float, y2: float) -> tuple[slice, slice]:
        """Find the rows and columns of the cells whose centre lies in a box."""
        rows, columns = (
            slice(max(0, math.ceil((a - first) / self.stride)), max(0, math.floor((b - first) / self.stride) + 1))
            for a, b, first in ((y1, y2, self.top), (x1, x2, self.left))
        )
        return rows, columns

    def place_karts(self, karts: Iterable[Kart]) -> Iterator[tuple[Kart, tuple[int, int]]]:
        """Yield each kart whose centre lies in the part, with its cell."""
        return ((kart, cell) for kart in karts if (cell := self.find_cell(*kart.center)))


FOVEA_CORNER = (VIEW_SIZE[0] - FOVEA_SIZE[0]) // 2, FOVEA_TOP
FOVEA_GRID, FOVEA_TOKEN_GRID = (Grid(*FOVEA_CORNER, *FOVEA_SIZE, stride) for stride in (4, 8))


def image_targets(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Build the classes of whole images.

    Returns:
        ego, total, track [n]; count [n, 4] (left, right, front, behind); relation [n, karts, 3]: whether the kart is
        present beside the ego kart, left of it, in front of it. int64, `UNKNOWN` where undefined.
    """
    n = len(scenes)
    targets = {
        "ego": np.full(n, UNKNOWN),
        "total": np.array([min(len(scene.karts), MAX_COUNT) for scene in scenes]),
        "track": np.array([TRACK_ID.get(scene.track, UNKNOWN) for scene in scenes]),
        "count": np.full((n, 4), UNKNOWN),
        "relation": np.full((n, len(KARTS), 3), UNKNOWN),
    }
    targets["relation"][:, :, 0] = 0
    for i, scene in enumerate(scenes):
        if scene.ego is None:
            continue
        targets["ego"][i] = KART_ID.get(scene.ego.name, UNKNOWN)
        left, front = ([test(kart) for kart in scene.others] for test in (scene.is_left, scene.is_front))
        counts = (sum(left), len(left) - sum(left), sum(front), len(front) - sum(front))
        targets["count"][i] = np.minimum(counts, MAX_COUNT)
        for kart, is_left, is_front in zip(scene.others, left, front, strict=True):
            if kart.name in KART_ID:
                targets["relation"][i, KART_ID[kart.name]] = 1, is_left, is_front
    return targets


def cell_targets(scenes: Sequence[AnnotatedScene], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, np.ndarray]:
    """Build the targets of each cell, for the image's columns from `left` to `left + width` and for the fovea.

    Returns:
        kart, weight, center, box at stride 8, foveal_kart, foveal_weight at stride 4 in the fovea: see `kart_maps`;
        token, side at stride 16, foveal_token, foveal_side at stride 8 in the fovea: see `token_targets`;
        foveal_map_size at stride 4, foveal_token_size at stride 8, both in the fovea: see `size_targets`.
    """
    part = left, 0, width, VIEW_SIZE[1]
    targets = kart_maps(scenes, Grid(*part, 8)) | token_targets(scenes, Grid(*part, 16))
    in_fovea = window_targets(scenes, *FOVEA_CORNER)
    targets |= {f"foveal_{name}": in_fovea[name] for name in ("kart", "weight", "token", "side")}
    token_size = size_targets(scenes, FOVEA_TOKEN_GRID).reshape(*in_fovea["token"].shape[:2], -1)
    return targets | {"foveal_map_size": size_targets(scenes, FOVEA_GRID), "foveal_token_size": token_size}


def window_targets(scenes: Sequence[AnnotatedScene], left: int, top: int) -> dict[str, np.ndarray]:
    """Build `kart_maps` at stride 4 and `token_targets` at stride 8 in a window of the fovea's size."""
    fine, coarse = (Grid(left, top, *FOVEA_SIZE, stride) for stride in (4, 8))
    return kart_maps(scenes, fine) | token_targets(scenes, coarse)


def kart_maps(scenes: Sequence[AnnotatedScene], grid: Grid) -> dict[str, np.ndarray]:
    """Build maps of karts, their centres and boxes, including karts too small for the label rule.

    Returns:
        kart [n, h, w]: the kart whose box (the smallest one) covers the cell's centre, else `BACKGROUND`;
        weight [n, h, w]: loss weight, 1 for background; the cells of a kart add up to the root of their number;
        center [n, h, w]: whether a kart's centre lies in the cell; box [n, h, w, 4]: log of that kart's width and
        height, and the offset of its centre from the cell's, in cells; 0 elsewhere.
    """
    shape = len(scenes), *grid.shape
    kart_map, weight = np.full(shape, BACKGROUND, dtype=np.int8), np.ones(shape, dtype=np.float16)
    center, box = np.zeros(shape, dtype=bool), np.zeros((*shape, 4), dtype=np.float16)
    for i, scene in enumerate(scenes):
        for kart in sorted(scene.all_karts, key=lambda k: -(k.box[2] - k.box[0]) * (k.box[3] - k.box[1])):
            index, (x1, y1, x2, y2), (x, y) = KART_ID.get(kart.name, UNKNOWN), kart.box, kart.center
            covered = (i, *grid.find_cells(*kart.box))
            kart_weight = KART_WEIGHT if kart.is_large_enough else SMALL_KART_WEIGHT
            cell_weight = kart_weight / max(1, kart_map[covered].size) ** 0.5
            kart_map[covered], weight[covered] = index, cell_weight
            if at := grid.find_cell(x, y):
                cell = (i, *at)
                kart_map[cell], weight[cell], center[cell] = index, cell_weight, True
                offset = (x - grid.left) / grid.stride - at[1], (y - grid.top) / grid.stride - at[0]
                box[cell] = *np.log((x2 - x1, y2 - y1)), *offset
    return {"kart": kart_map, "weight": weight, "center": center, "box": box}


def token_targets(scenes: Sequence[Scene], grid: Grid) -> dict[str, np.ndarray]:
    """Build the karts whose centres lie in each cell, and their sides of the ego kart.

    Returns:
        token [n, h * w, karts + 1]: for each kart, then for the ego kart, whether its centre lies in the cell;
        side [n, h * w, 2]: whether the other karts there are left of the ego kart, in front of it; `UNKNOWN` without
        any, or where two differ.
    """
    n = len(scenes)
    token = np.zeros((n, *grid.shape, len(KARTS) + 1), dtype=bool)
    side, found = np.full((n, *grid.shape, 2), UNKNOWN, dtype=np.int8), set()
    for i, scene in enumerate(scenes):
        for kart, at in grid.place_karts(scene.karts):
            cell = (i, *at)
            if kart.name in KART_ID:
                token[(*cell, KART_ID[kart.name])] = True
            token[(*cell, BACKGROUND)] |= kart is scene.ego
            if kart is not scene.ego:
                flags = np.array([scene.is_left(kart), scene.is_front(kart)], dtype=np.int8)
                side[cell] = np.where((side[cell] == flags) | (cell not in found), flags, UNKNOWN)
                found.add(cell)
    return {"token": token.reshape(n, -1, len(KARTS) + 1), "side": side.reshape(n, -1, 2)}


def size_targets(scenes: Sequence[AnnotatedScene], grid: Grid) -> np.ndarray:
    """Compare the width and height of the kart centred in each cell with `SIZE_THRESHOLDS_PX`.

    Returns:
        [n, h, w, 2 * thresholds]: whether the width, then the height reach each; `UNKNOWN` without a kart, or with two.
    """
    size = np.full((len(scenes), *grid.shape, 2 * len(SIZE_THRESHOLDS_PX)), UNKNOWN, dtype=np.int8)
    for i, scene in enumerate(scenes):
        found = set()
        for kart, cell in grid.place_karts(scene.all_karts):
            x1, y1, x2, y2 = kart.box
            reached = [side >= least for side in (x2 - x1, y2 - y1) for least in SIZE_THRESHOLDS_PX]
            size[(i, *cell)] = UNKNOWN if cell in found else reached
            found.add(cell)
    return size
