"""Depth images of the changed shaders -> which pixels are which kart's, and their boxes.

Coordinates: the world's are the game's (left-handed, x right, y up, z forward, metres); images are row-major with the
top row first; boxes are [x1, y1, x2, y2] in pixels of a 600x400 image, x2 and y2 the last pixel of the kart.
"""

from dataclasses import dataclass

import numpy as np

from homework.labels.scene import DETECTION_SIZE

from .shaders import LEVELS, MATRIX_COLUMNS, MATRIX_ROWS, ORIGIN_CELL, ORIGIN_CELLS, PLACED_DEPTHS, TRACK_DEPTHS

MIN_PIXELS = 3  # a kart of fewer drawn pixels is not there
ITEM_RADIUS = 0.9  # metres; the engine's `size` is how near a kart must come to take it
# Metres by which wheels and drivers may stick out of a kart's body, and what it holds.
OVERHANG, OUTWARD, UPWARD, DOWNWARD = 0.15, 0.4, 0.4, 0.5
INSIDE, AWAY = 0.2, 1.2  # metres from the body: origins of what may stick out farther, and those of other parts
POINT_WEIGHT = 0.5  # of the metres by which a mesh's points stick out, beside those of its origin
HELD_OUTWARD, HELD_BEHIND, HELD_UPWARD = 0.4, 1.2, 1.6
ITEM_ORIGIN = 0.2  # metres from an item, on each axis, to the origin of its mesh
KART_REACH = 3.0  # metres; no kart is larger, with what it holds
MIN_AGREEMENT = 0.98  # of the track's pixels, on the matrix that they carry


class UnreadableError(Exception):
    """What was drawn cannot be used; says why in a word."""


@dataclass(frozen=True)
class View:
    """What a camera saw.

    image [h, w, 3] uint8; detections: rows of (class, number, box) as in `info.json`; distance [h, w]: metres from the
    camera, inf for the sky, or None where it isn't known.
    """

    image: np.ndarray
    detections: list[list[int]]
    distance: np.ndarray | None = None


@dataclass(frozen=True)
class Moment:
    """A moment that was drawn: view v follows the kart v of `karts`.

    order: the numbers that these karts have in the race's plan; karts: the engine's, with their places.
    """

    order: list[int]
    karts: list
    views: list[View]


@dataclass(frozen=True)
class Depth:
    """A decoded depth image of h x w pixels.

    opaque [h, w] bool: not the sky; placed [h, w] bool: of a mesh with an origin of its own; cell [h, w] int: where
    that origin is, as the shaders number it; z [h, w]: normalised device depth, -1 to 1; matrix [4, 4]: world -> clip
    space, on column vectors; agreement: share of the track's pixels that carry that matrix.
    """

    opaque: np.ndarray
    placed: np.ndarray
    cell: np.ndarray
    z: np.ndarray
    matrix: np.ndarray
    agreement: float

    @property
    def is_whole(self) -> bool:
        """Whether the matrix could be read."""
        return self.agreement >= MIN_AGREEMENT

    @property
    def distance(self) -> np.ndarray:
        """[h, w] metres along the view direction; inf where the sky is."""
        depth, forward = self.matrix[2], self.matrix[3]
        # clip z is a * w + b, with w the distance: the near and far planes are in a and b
        a = depth[:3] @ forward[:3] / (forward[:3] @ forward[:3])
        b = depth[3] - a * forward[3]
        with np.errstate(divide="ignore"):
            return np.where(self.opaque, b / (self.z - a), np.inf)


def decode(depth: np.ndarray) -> Depth:
    """Take apart what the shaders wrote.

    Args:
        depth: [h, w] float32 in [0, 1], the top row first.
    """
    height, width = depth.shape
    code = np.rint(depth.astype(np.float64) * (LEVELS - 1)).astype(np.int32)
    opaque = code < LEVELS - 1  # the sky has no mesh: depth 1
    placed = opaque & (code % 2 == 1)
    track = code % 2 == 0
    rows = (height - 1 - np.arange(height))[:, None] % MATRIX_ROWS  # the shader counts rows from below
    columns = np.arange(width)[None, :] % MATRIX_COLUMNS
    cell = (columns * MATRIX_ROWS + rows)[track]
    bits = code[track] // 2 % 8
    # Each cell's value is the one that most of its pixels carry.
    votes = np.bincount(cell * 8 + bits, minlength=MATRIX_COLUMNS * MATRIX_ROWS * 8)
    votes = votes.reshape(MATRIX_COLUMNS, MATRIX_ROWS, 8)
    agreement = votes.max(2).sum() / max(1, votes.sum()) if votes.any(2).all() else 0.0
    pieces = votes.argmax(2).astype(np.uint64) << (3 * np.arange(MATRIX_ROWS, dtype=np.uint64))
    floats = (pieces.sum(1) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    matrix = floats.astype(np.float64).reshape(4, 4).T  # the shader's are columns
    z = (code // (LEVELS // TRACK_DEPTHS) + 0.5) * (2 / TRACK_DEPTHS) - 1
    z[placed] = (code[placed] // (LEVELS // PLACED_DEPTHS) + 0.5) * (2 / PLACED_DEPTHS) - 1
    origin = np.where(placed, code % (LEVELS // PLACED_DEPTHS) // 2, 0)
    return Depth(opaque, placed, origin, z, matrix, float(agreement))


def rotation_matrix(quaternion) -> np.ndarray:
    """The engine's quaternion -> [3, 3], a body's axes (right, up, front) as columns.

    pystk2 0.7.4 gives the inverse rotation in the order w, x, y, z.
    """
    w, x, y, z = quaternion[0], -quaternion[1], -quaternion[2], -quaternion[3]
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def half_turn(quaternion) -> tuple:
    """The engine's quaternion of a body that faces the other way on the same ground."""
    w, x, y, z = quaternion
    return -y, z, w, -x


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """World points [n, 3] -> [n, 3]: x and y in half images from the centre (y up), and the distance in metres."""
    clip = np.c_[points, np.ones(len(points))] @ matrix.T
    distance = clip[:, 3]
    return np.c_[clip[:, :2] / np.where(np.abs(distance) < 1e-6, 1e-6, distance)[:, None], distance]


def unproject(view: Depth, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The world points [n, 3] of n pixels."""
    height, width = view.z.shape
    x = (columns + 0.5) / width * 2 - 1
    y = 1 - (rows + 0.5) / height * 2
    points = np.stack([x, y, view.z[rows, columns], np.ones(len(rows))], 1) @ np.linalg.inv(view.matrix).T
    return points[:, :3] / points[:, 3:]


def instances(view: Depth, karts: list, items: list) -> np.ndarray:
    """Which pixel is whose: [h, w] int, 0 none, 1 to k the karts, k + 1 on the items.

    A placed pixel belongs to the kart in whose body its mesh's origin is, or is nearest to, if its point sticks out of
    it by no more than wheels and drivers do; or else to the item at which its mesh has its origin. Where there is
    neither, it belongs to the nearest item within reach; and where there is none of these, to a kart that holds
    something, if what it holds may reach there.

    Args:
        karts, items: the engine's, of the moment that was drawn.
    """
    rows, columns = np.nonzero(view.placed)
    owner = np.zeros(view.placed.shape, np.int16)
    if not len(rows):
        return owner
    points = unproject(view, rows, columns)
    order = np.argsort(points[:, 0])  # so that each body's points are found among few
    rows, columns, points = rows[order], columns[order], points[order]
    cells = view.cell[rows, columns]
    origins = (np.stack([cells % ORIGIN_CELLS, cells // ORIGIN_CELLS], 1) + 0.5) * ORIGIN_CELL
    nearest = np.full(len(points), np.inf)
    whose = np.zeros(len(points), np.int16)
    for number, body in enumerate([*karts, *items], 1):
        place = np.asarray(body.location)
        reach, cost_of = (KART_REACH, _kart_cost) if number <= len(karts) else (ITEM_RADIUS, _item_cost)
        first, end = np.searchsorted(points[:, 0], (place[0] - reach, place[0] + reach))
        near = first + np.flatnonzero((np.abs(points[first:end, 1:] - place[1:]) < reach).all(1))
        if not len(near):
            continue
        # of the places where the origin may be, the one nearest to the body
        period = ORIGIN_CELL * ORIGIN_CELLS
        offsets = (origins[near] - place[[0, 2]] + period / 2) % period - period / 2
        cost = cost_of(points[near], offsets, cells[near], body)
        closer = cost < nearest[near]
        nearest[near[closer]] = cost[closer]
        whose[near[closer]] = number
    owner[rows, columns] = whose
    return owner


def _kart_cost(points: np.ndarray, offsets: np.ndarray, cells: np.ndarray, kart) -> np.ndarray:
    """Points [n, 3], their meshes' origins from the kart [n, 2] and cells [n] -> [n]: below 3 on it, inf elsewhere.

    It is above 5 on what the kart perhaps holds. `size` is (width, height, length) of the body alone. Two karts' bodies
    never overlap, but boxes widened by shares of their sizes would, so it counts by how many metres an origin and a
    mesh's points stick out. Lights have their origins up to a metre in front of the body, where the next kart may be;
    hence both.
    """
    axes = rotation_matrix(kart.rotation)
    width, height, length = kart.size
    x, y, z = ((points - np.asarray(kart.location)) @ axes).T
    outside = np.maximum(np.abs(x) - width / 2, np.abs(z) - length / 2)
    # The origins' heights are not known; they are taken to be on the kart's underside.
    right, up, front = axes.T[:, [0, 2]]
    heights = -(offsets @ up) / max(axes[1, 1], 0.1)
    across, along = offsets @ right + heights * axes[1, 0], offsets @ front + heights * axes[1, 2]
    away = np.maximum(np.abs(across) - width / 2, np.abs(along) - length / 2)
    inside = away < INSIDE
    own = (outside < np.where(inside, OUTWARD, OVERHANG)) & (y < height + UPWARD)
    reached = own
    if kart.attachment.type.name != "NOTHING":
        # swatters rise above the driver, a parachute is drawn behind
        beside = np.maximum(np.abs(x) - width / 2, z - length / 2) < HELD_OUTWARD
        reached = own | (beside & (-z - length / 2 < HELD_BEHIND) & (y < height + HELD_UPWARD))
    reached = reached & (away < AWAY) & (y > -DOWNWARD)
    # by how much the mesh's points stick out on average, so that it stays in one piece
    pixels = np.bincount(cells[reached], minlength=ORIGIN_CELLS**2)
    sums = np.bincount(cells[reached], np.maximum(outside[reached], 0), ORIGIN_CELLS**2)
    cost = np.maximum(away, 0) + 0.1 * away + POINT_WEIGHT * (sums / np.maximum(pixels, 1))[cells]
    return np.where(reached, np.where(own | inside, cost, 5 + cost), np.inf)


def _item_cost(points: np.ndarray, offsets: np.ndarray, _, item) -> np.ndarray:
    """As `_kart_cost`: hardly above 0 on the item that is drawn there, 3 to 4 in the sphere around any, else inf."""
    distance = np.linalg.norm(points - np.asarray(item.location), axis=1) / ITEM_RADIUS
    drawn = (np.abs(offsets) < ITEM_ORIGIN).all(1)
    return np.where(distance < 1, np.where(drawn, 0.01, 3) + 0.01 * distance, np.inf)


def boxes(owner: np.ndarray, numbers) -> dict[int, list[int]]:
    """The boxes of those of the owners `numbers` that are seen, from `instances`' map [h, w].

    Drawn at 300x200, an edge is at most one pixel of 600x400 from where it is drawn at full size.
    """
    height, width = owner.shape
    scale_x, scale_y = DETECTION_SIZE[0] / width, DETECTION_SIZE[1] / height
    rows, columns = np.nonzero(owner)
    whose = owner[rows, columns]
    order = np.argsort(whose, kind="stable")
    rows, columns, whose = rows[order], columns[order], whose[order]
    found = {}
    for number in sorted(set(numbers) & set(whose.tolist())):
        own = slice(np.searchsorted(whose, number), np.searchsorted(whose, number, "right"))
        if own.stop - own.start < MIN_PIXELS:
            continue
        x1, x2 = columns[own].min() * scale_x, (columns[own].max() + 1) * scale_x - 1
        y1, y2 = rows[own].min() * scale_y, (rows[own].max() + 1) * scale_y - 1
        found[number] = [int(round(value)) for value in (x1, y1, x2, y2)]
    return found
