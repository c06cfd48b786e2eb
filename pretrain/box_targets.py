"""The targets of the vision encoder of shape `boxes`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from homework.labels.scene import VIEW_SIZE, Scene

from .boxes import STRIDE
from .targets import KART_ID, UNKNOWN, AnnotatedScene, Grid, image_targets

PEAK_SHARE = 0.09  # of a box's side: standard deviation of the peak at its centre (as TTFNet, arXiv:1909.00700)
MIN_PEAK_CELLS = 0.4  # the smallest one
CORE_SHARE = 0.5  # of a box's sides: in this part of it cells learn the kart's name


def box_targets(scenes: Sequence[AnnotatedScene], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, Tensor]:
    """Build the targets of each cell for the image's columns from `left` to `left + width`.

    Karts that are too small for the label rule are targets too; `large` tells them apart.

    Returns:
        heat [n, h, w]: 1 at the centres of karts, less around; is_center, large [n, h, w]; size [n, h, w, 2]: the log
        of width and height; offset [n, h, w, 2]: (x, y) of the centre from the cell's, in cells; name [n, h, w]: a
        kart's number, `UNKNOWN` in cells without a name; name_weight [n, h, w]: 1 at a centre, and 1 in all around, see
        `CORE_SHARE`; track [n].
    """
    grid = Grid(left, 0, width, VIEW_SIZE[1], STRIDE)
    shape = len(scenes), *grid.shape
    heat, is_center, large = (np.zeros(shape, dtype=dtype) for dtype in (np.float32, bool, np.float32))
    size, offset = np.zeros((2, *shape, 2), dtype=np.float32)
    name, name_weight = np.full(shape, UNKNOWN), np.zeros(shape, dtype=np.float32)
    rows, columns = (np.arange(n) * STRIDE for n in grid.shape)
    for i, scene in enumerate(scenes):
        # the largest last: where two meet, the nearer kart counts
        karts = sorted(scene.all_karts, key=lambda kart: kart.min_side)
        for kart in karts:
            (x1, y1, x2, y2), (x, y) = kart.box, kart.center
            core_x, core_y = (CORE_SHARE / 2 * side for side in (x2 - x1, y2 - y1))
            core = (i, *grid.find_cells(x - core_x, y - core_y, x + core_x, y + core_y))
            name[core], name_weight[core] = KART_ID.get(kart.name, UNKNOWN), 1 / max(1, name[core].size)
        for kart, (row, column) in grid.place_karts(karts):
            (x1, y1, x2, y2), (x, y) = kart.box, kart.center
            spread_x, spread_y = (max(MIN_PEAK_CELLS * STRIDE, PEAK_SHARE * side) for side in (x2 - x1, y2 - y1))
            slope_x = np.exp(-(((columns - column * STRIDE) / spread_x) ** 2) / 2)
            slope_y = np.exp(-(((rows - row * STRIDE) / spread_y) ** 2) / 2)
            heat[i] = np.maximum(heat[i], slope_y[:, None] * slope_x)
            cell = i, row, column
            is_center[cell], large[cell], size[cell] = True, kart.is_large_enough, np.log((x2 - x1, y2 - y1))
            offset[cell] = (x - left) / STRIDE - column, y / STRIDE - row
            name[cell], name_weight[cell] = KART_ID.get(kart.name, UNKNOWN), 1
    arrays = {"heat": heat, "is_center": is_center, "large": large, "size": size, "offset": offset}
    arrays |= {"name": name, "name_weight": name_weight}
    arrays["track"] = image_targets([Scene(scene.track, ()) for scene in scenes])["track"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
