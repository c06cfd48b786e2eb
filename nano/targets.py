"""Scene -> the dense targets that the vision tower learns from first."""

from collections.abc import Sequence

import numpy as np

from homework.scene import VIEW_SIZE, Scene

KARTS = (
    "adiumy amanda beastie emule gavroche gnu hexley kiki konqi nolok pidgin puffy sara_the_racer "
    "sara_the_wizard suzanne tux wilber xue"
).split()
TRACKS = (
    "abyss black_forest candela_city cocoa_temple cornfield_crossing fortmagma gran_paradiso_island hacienda "
    "lighthouse minigolf olivermath overworld ravenbridge_mansion sandtrack scotland snowmountain snowtuxpeak "
    "tutorial volcano_island xr591 zengarden"
).split()
KART_ID = {name: index for index, name in enumerate(KARTS)}
TRACK_ID = {name: index for index, name in enumerate(TRACKS)}
NONE = len(KARTS)  # a cell without a kart
IGNORE = -1
MAX_COUNT = 9  # larger numbers count as this one

FINE, COARSE = 8, 16  # strides of the two maps that targets are given for


def mirror(scene: Scene) -> Scene:
    """The scene of the image flipped left to right."""
    karts = []
    for kart in scene.karts:
        x1, y1, x2, y2 = kart.box
        karts.append(type(kart)(kart.track_id, kart.name, (VIEW_SIZE[0] - x2, y1, VIEW_SIZE[0] - x1, y2)))
    return Scene(scene.track, tuple(karts))


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


def cell_targets(scenes: Sequence[Scene], left: int = 0, width: int = VIEW_SIZE[0]) -> dict[str, np.ndarray]:
    """What is true of each cell of the maps of the image's columns `left` to `left + width`.

    Returns:
        kart [n, h, w] at stride 8: the kart whose box covers the cell's middle (the smallest such box),
        `NONE` without one; center [n, h, w] at stride 8: a kart's centre lies in the cell; box [n, h, w, 4]: log
        of that kart's width and height, and where its centre lies beside the cell's middle, in cells; 0 elsewhere;
        token [n, h16 * w16, karts + 1] at stride 16: the karts whose centre lies in the cell, and whether the ego
        kart's does; side [n, h16 * w16, 2]: are those beside the ego kart left of it, in front of it; `IGNORE` without
        one, or where two differ.
    """
    n, grid = len(scenes), [(-(-VIEW_SIZE[1] // s), -(-width // s)) for s in (FINE, COARSE)]
    kart_map = np.full((n, *grid[0]), NONE, dtype=np.int8)
    center = np.zeros((n, *grid[0]), dtype=bool)
    box = np.zeros((n, *grid[0], 4), dtype=np.float16)
    token = np.zeros((n, *grid[1], len(KARTS) + 1), dtype=bool)
    side, found = np.full((n, *grid[1], 2), IGNORE, dtype=np.int8), set()
    for i, scene in enumerate(scenes):
        for kart in sorted(scene.karts, key=lambda k: -(k.box[2] - k.box[0]) * (k.box[3] - k.box[1])):
            x1, y1, x2, y2 = (value - offset for value, offset in zip(kart.box, (left, 0) * 2, strict=True))
            index = KART_ID.get(kart.name, IGNORE)
            # the cell with index c has its middle at pixel c * stride
            rows, columns = (slice(max(0, -(-a // FINE)), b // FINE + 1) for a, b in ((y1, y2), (x1, x2)))
            if columns.stop > 0:
                kart_map[i, rows, columns] = index
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            if not 0 <= cx < width:
                continue
            at = round(cy / FINE), round(cx / FINE)
            kart_map[(i, *at)] = index
            center[(i, *at)] = True
            box[(i, *at)] = *np.log((x2 - x1, y2 - y1)), cx / FINE - at[1], cy / FINE - at[0]
            cell = min(round(cy / COARSE), grid[1][0] - 1), min(round(cx / COARSE), grid[1][1] - 1)
            if index != IGNORE:
                token[(i, *cell, index)] = True
            token[(i, *cell, NONE)] |= kart is scene.ego
            if kart is not scene.ego:
                flags = np.array([scene.is_left(kart), scene.is_front(kart)], dtype=np.int8)
                side[(i, *cell)] = np.where((side[(i, *cell)] == flags) | ((i, *cell) not in found), flags, IGNORE)
                found.add((i, *cell))
    maps = {"kart": kart_map, "center": center, "box": box}
    return maps | {"token": token.reshape(n, -1, len(KARTS) + 1), "side": side.reshape(n, -1, 2)}
