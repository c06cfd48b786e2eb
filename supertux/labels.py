"""Depth images of the changed shaders -> which pixels are which kart's, and their boxes.

Coordinates: the world's are the game's (left-handed, x right, y up, z forward, metres); images are row-major with the
top row first; boxes are [x1, y1, x2, y2] in pixels of a 600x400 image, x2 and y2 the last pixel of the kart.
"""

from dataclasses import dataclass

import numpy as np

from homework.scene import DETECTION_SIZE

from .shaders import DEPTH_LEVELS, LABEL_LEVELS, MATRIX_COLUMNS, MATRIX_ROWS, OWN_ORIGIN

MIN_PIXELS = 3  # a kart of fewer drawn pixels is not there
ITEM_RADIUS = 0.9  # metres; the engine's `size` is how near a kart must come to take it
# Metres by which wheels and drivers may stick out of a kart's body, and what it holds.
OUTWARD, UPWARD, DOWNWARD = 0.2, 0.4, 0.5
HELD_OUTWARD, HELD_BEHIND, HELD_UPWARD = 0.4, 1.2, 1.6
REACH = 4.0  # metres; no kart or item is larger
MIN_AGREEMENT = 0.98  # of the pixels, on the matrix that they carry


@dataclass(frozen=True)
class Depth:
    """A decoded depth image of h x w pixels.

    opaque [h, w] bool: not the sky; placed [h, w] bool: of a mesh with an origin of its own; z [h, w]: normalised
    device depth, -1 to 1; matrix [4, 4]: world -> clip space, on column vectors; agreement: share of the pixels that
    carry that matrix.
    """

    opaque: np.ndarray
    placed: np.ndarray
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
    levels = DEPTH_LEVELS * LABEL_LEVELS
    code = np.rint(depth.astype(np.float64) * (levels - 1)).astype(np.int64)
    opaque = code < levels - 1  # the sky has no mesh: depth 1
    label = code % LABEL_LEVELS
    rows = (height - 1 - np.arange(height))[:, None] % MATRIX_ROWS  # the shader counts rows from below
    columns = np.arange(width)[None, :] % MATRIX_COLUMNS
    cell = (columns * MATRIX_ROWS + rows)[opaque]
    bits = (label % OWN_ORIGIN)[opaque]
    # Each cell's value is the one that most of its pixels carry.
    votes = np.bincount(cell * OWN_ORIGIN + bits, minlength=MATRIX_COLUMNS * MATRIX_ROWS * OWN_ORIGIN)
    votes = votes.reshape(MATRIX_COLUMNS, MATRIX_ROWS, OWN_ORIGIN)
    agreement = votes.max(2).sum() / max(1, votes.sum()) if votes.any(2).all() else 0.0
    pieces = votes.argmax(2).astype(np.uint64) << (3 * np.arange(MATRIX_ROWS, dtype=np.uint64))
    floats = (pieces.sum(1) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    matrix = floats.astype(np.float64).reshape(4, 4).T  # the shader's are columns
    z = ((code // LABEL_LEVELS) + 0.5) / DEPTH_LEVELS * 2 - 1
    return Depth(opaque, opaque & (label >= OWN_ORIGIN), z, matrix, float(agreement))


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

    A placed pixel belongs to the kart whose body its point sticks out of least, if by no more than wheels and drivers
    do. Where there is none, it belongs to the nearest item within reach; and where there is none of these either, to
    a kart that holds something, if what it holds may reach there.

    Args:
        karts, items: the engine's, of the moment that was drawn.
    """
    rows, columns = np.nonzero(view.placed)
    owner = np.zeros(view.placed.shape, np.int16)
    if not len(rows):
        return owner
    points = unproject(view, rows, columns)
    low, high = points.min(0) - REACH, points.max(0) + REACH
    nearest = np.full(len(points), np.inf)
    whose = np.zeros(len(points), np.int16)
    for number, body in enumerate([*karts, *items], 1):
        place = np.asarray(body.location)
        if np.any(place < low) or np.any(place > high):
            continue
        near = np.flatnonzero((np.abs(points - place) < REACH).all(1))
        cost = (_kart_cost if number <= len(karts) else _item_cost)(points[near], body)
        closer = cost < nearest[near]
        nearest[near[closer]] = cost[closer]
        whose[near[closer]] = number
    owner[rows, columns] = whose
    return owner


def _kart_cost(points: np.ndarray, kart) -> np.ndarray:
    """Points [n, 3] -> [n]: below 1 on the kart itself, 2 to 3 on what it may hold, else inf.

    `size` is (width, height, length) of the body alone. Two karts' bodies never overlap, but boxes widened by shares of
    their sizes would, so it counts by how many metres a point sticks out.
    """
    x, y, z = ((points - np.asarray(kart.location)) @ rotation_matrix(kart.rotation)).T
    width, height, length = kart.size
    outside = np.maximum(np.abs(x) - width / 2, np.abs(z) - length / 2)
    upward = np.where(y > 0, (y - height) / UPWARD, -y / DOWNWARD)
    cost = np.where(upward < 1, outside / OUTWARD, np.inf)
    cost = np.where(cost < 1, cost, np.inf)
    if kart.attachment.type.name != "NOTHING":
        # swatters rise above the driver, a parachute is drawn behind
        outside = np.maximum(np.abs(x) - width / 2, z - length / 2) / HELD_OUTWARD
        outside = np.maximum(outside, (-z - length / 2) / HELD_BEHIND)
        held = (outside < 1) & (y > -DOWNWARD) & (y < height + HELD_UPWARD)
        cost = np.where(np.isinf(cost) & held, 2 + outside, cost)
    return cost


def _item_cost(points: np.ndarray, item) -> np.ndarray:
    """Points [n, 3] -> [n]: 1 to 2 within the sphere around an item, else inf."""
    distance = np.linalg.norm(points - np.asarray(item.location), axis=1) / ITEM_RADIUS
    return np.where(distance < 1, 1 + distance, np.inf)


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
