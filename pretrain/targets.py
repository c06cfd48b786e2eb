"""Scene -> the dense targets that the vision tower learns from first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from homework.labels.game import KARTS, TRACKS
from homework.labels.scene import VIEW_SIZE, Scene
from homework.models.tux_nano.vision import FOVEA_SIZE, FOVEA_TOP

from .annotated_scene import Seen

KART_ID = {name: index for index, name in enumerate(KARTS)}
TRACK_ID = {name: index for index, name in enumerate(TRACKS)}
NONE = len(KARTS)  # a cell without a kart
IGNORE = -1
MAX_COUNT = 9  # larger numbers count as this one
KART_WEIGHT = 10  # of a kart of one cell, beside 1 of a cell without
SMALL_WEIGHT = 3  # of one that is too small to count
SIZES = (3, 4, 5, 6, 7)  # pixels: which of them a box's width reaches, and its height


@dataclass(frozen=True)
class Grid:
    """The cells of a map of a part of the view, in pixels. The first cell's middle is the part's corner."""

    left: int
    top: int
    width: int
    height: int
    stride: int

    @property
    def columns(self) -> int:
        """Cells in a row."""
        return -(-self.width // self.stride)

    @property
    def rows(self) -> int:
        """Cells in a column."""
        return -(-self.height // self.stride)

    def cell_of(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, column) of the cell that holds a point of the view; None outside of the part."""
        x, y = x - self.left, y - self.top
        if not (0 <= x < self.width and 0 <= y < self.height):
            return None
        return min(round(y / self.stride), self.rows - 1), min(round(x / self.stride), self.columns - 1)

    def cells_of(self, x1: float, y1: float, x2: float, y2: float) -> tuple[slice, slice]:
        """Rows and columns of the cells whose middle is in a box."""
        rows, columns = (
            slice(max(0, -(-(a - first) // self.stride)), max(0, (b - first) // self.stride + 1))
            for a, b, first in ((y1, y2, self.top), (x1, x2, self.left))
        )
        return rows, columns


FOVEA = (VIEW_SIZE[0] - FOVEA_SIZE[0]) // 2, FOVEA_TOP, *FOVEA_SIZE
FOVEA_CELLS = Grid(*FOVEA, 4)


def image_targets(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """What is true of each whole image.

    Returns:
        ego, total, track [n]; count [n, 4] (left, right, front, behind); relation [n, karts, 3]: is the
        kart there beside the ego kart, is it left, is it in front. int64, `IGNORE` where nothing is known.
    """
    n = len(scenes)
    targets = {
        "ego": np.full(n, IGNORE),
        "total": np.array([min(len(scene.karts), MAX_COUNT) for scene in scenes]),
        "track": np.array([TRACK_ID.get(scene.track, IGNORE) for scene in scenes]),
        "count": np.full((n, 4), IGNORE),
        "relation": np.full((n, len(KARTS), 3), IGNORE),
    }
    targets["relation"][:, :, 0] = 0
    for i, scene in enumerate(scenes):
        if scene.ego is None:
            continue
        targets["ego"][i] = KART_ID.get(scene.ego.name, IGNORE)
        left, front = ([test(kart) for kart in scene.others] for test in (scene.is_left, scene.is_front))
        counts = (sum(left), len(left) - sum(left), sum(front), len(front) - sum(front))
        targets["count"][i] = np.minimum(counts, MAX_COUNT)
        for kart, is_left, is_front in zip(scene.others, left, front, strict=True):
            if kart.name in KART_ID:
                targets["relation"][i, KART_ID[kart.name]] = 1, is_left, is_front
    return targets


def cell_targets(scenes: Sequence[Seen], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, np.ndarray]:
    """What is true of each cell of the maps of the image's columns `left` to `left + width`, and of the fovea's.

    Returns:
        kart, weight, center, box at stride 8, fovea_kart, fovea_weight at stride 4 in the fovea: see `kart_maps`;
        token, side at stride 16, fovea_token, fovea_side at stride 8 in the fovea: see `token_targets`;
        fovea_size at stride 4, fovea_token_size at stride 8, both in the fovea: see `size_targets`.
    """
    part, fovea_tokens = (left, 0, width, VIEW_SIZE[1]), Grid(*FOVEA, 8)
    targets = kart_maps(scenes, Grid(*part, 8)) | token_targets(scenes, Grid(*part, 16))
    in_fovea = kart_maps(scenes, FOVEA_CELLS) | token_targets(scenes, fovea_tokens)
    targets |= {f"fovea_{name}": in_fovea[name] for name in ("kart", "weight", "token", "side")}
    size = size_targets(scenes, fovea_tokens).reshape(len(scenes), fovea_tokens.rows * fovea_tokens.columns, -1)
    return targets | {"fovea_size": size_targets(scenes, FOVEA_CELLS), "fovea_token_size": size}


def kart_maps(scenes: Sequence[Seen], grid: Grid) -> dict[str, np.ndarray]:
    """Which kart covers each cell, and where karts' centres are, those included that are too small to count.

    Returns:
        kart [n, h, w]: the kart whose box covers the cell's middle (the smallest such box), `NONE` without one;
        weight [n, h, w]: 1 there, and more for the cells of small karts, that a kart weighs as the root of its size;
        center [n, h, w]: a kart's centre lies in the cell; box [n, h, w, 4]: log of that kart's width and height, and
        where its centre lies beside the cell's middle, in cells; 0 elsewhere.
    """
    shape = len(scenes), grid.rows, grid.columns
    kart_map, weight = np.full(shape, NONE, dtype=np.int8), np.ones(shape, dtype=np.float16)
    center, box = np.zeros(shape, dtype=bool), np.zeros((*shape, 4), dtype=np.float16)
    for i, scene in enumerate(scenes):
        for kart in sorted(scene.all_karts, key=lambda k: -(k.box[2] - k.box[0]) * (k.box[3] - k.box[1])):
            index, (x1, y1, x2, y2), at = KART_ID.get(kart.name, IGNORE), kart.box, grid.cell_of(*kart.center)
            rows, columns = grid.cells_of(*kart.box)
            cells = kart_map[i, rows, columns].size
            heavy = (KART_WEIGHT if kart.is_large_enough else SMALL_WEIGHT) / max(1, cells) ** 0.5
            kart_map[i, rows, columns], weight[i, rows, columns] = index, heavy
            if at is None:
                continue
            kart_map[(i, *at)], weight[(i, *at)] = index, heavy
            center[(i, *at)] = True
            dx, dy = (
                (middle - first) / grid.stride for middle, first in zip(kart.center, (grid.left, grid.top), strict=True)
            )
            box[(i, *at)] = *np.log((x2 - x1, y2 - y1)), dx - at[1], dy - at[0]
    return {"kart": kart_map, "weight": weight, "center": center, "box": box}


def token_targets(scenes: Sequence[Scene], grid: Grid) -> dict[str, np.ndarray]:
    """Which karts' centres lie in each cell, and on which side of the ego kart they are.

    Returns:
        token [n, h * w, karts + 1]: the karts whose centre lies in the cell, and whether the ego kart's does;
        side [n, h * w, 2]: are those beside the ego kart left of it, in front of it; `IGNORE` without one, or where
        two differ.
    """
    n = len(scenes)
    token = np.zeros((n, grid.rows, grid.columns, len(KARTS) + 1), dtype=bool)
    side, found = np.full((n, grid.rows, grid.columns, 2), IGNORE, dtype=np.int8), set()
    for i, scene in enumerate(scenes):
        for kart in scene.karts:
            at, index = grid.cell_of(*kart.center), KART_ID.get(kart.name, IGNORE)
            if at is None:
                continue
            cell = (i, *at)
            if index != IGNORE:
                token[(*cell, index)] = True
            token[(*cell, NONE)] |= kart is scene.ego
            if kart is not scene.ego:
                flags = np.array([scene.is_left(kart), scene.is_front(kart)], dtype=np.int8)
                side[cell] = np.where((side[cell] == flags) | (cell not in found), flags, IGNORE)
                found.add(cell)
    return {"token": token.reshape(n, -1, len(KARTS) + 1), "side": side.reshape(n, -1, 2)}


def size_targets(scenes: Sequence[Seen], grid: Grid) -> np.ndarray:
    """Which of `SIZES` the width and the height of the kart reach whose centre lies in a cell.

    Returns:
        [n, h, w, 2 * sizes]: of the width, then of the height; `IGNORE` without a kart, or with two.
    """
    size = np.full((len(scenes), grid.rows, grid.columns, 2 * len(SIZES)), IGNORE, dtype=np.int8)
    for i, scene in enumerate(scenes):
        found = set()
        for kart in scene.all_karts:
            at = grid.cell_of(*kart.center)
            if at is None:
                continue
            x1, y1, x2, y2 = kart.box
            reached = [side >= least for side in (x2 - x1, y2 - y1) for least in SIZES]
            size[(i, *at)] = IGNORE if at in found else reached
            found.add(at)
    return size
