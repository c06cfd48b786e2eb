"""Decode the depth images of the patched shaders: which pixels belong to which kart, and the karts' boxes.

Coordinates: the world's are the game's (left-handed, x right, y up, z forward, metres); images are row-major with the
top row first; boxes are [x1, y1, x2, y2] in pixels of a 600x400 image, x2 and y2 the last pixel of the kart.
"""

from dataclasses import dataclass

import numpy as np

from homework.labels.scene import DETECTION_SIZE

from . import shaders

MIN_KART_PIXELS = 3  # at the drawn size; a kart with fewer gets no box
MIN_AGREEMENT = 0.98  # share of the track's pixels
ITEM_RADIUS_M = 0.9  # the engine's `size` is how near a kart must come to take an item
ITEM_ORIGIN_TOLERANCE_M = 0.2  # on each axis, between an item and the origin of its mesh
OVERHANG_WEIGHT = 0.5  # of the metres by which a mesh sticks out of a kart, against those of its origin
HELD_COST = 5.0  # added for what a kart only may be holding
ITEM_COST, OTHER_ITEM_COST = 0.01, 3.0  # of an item whose mesh has its origin there, and of any other within reach
# How far the meshes of a kart reach beyond its body.
ORIGIN_NEAR_M = 0.2  # the origins of wheels and drivers, which may stick out farther
ORIGIN_MAX_M = 1.2  # the origins of lights and other parts
OVERHANG_NEAR_M, OVERHANG_M = 0.4, 0.15  # wheels and drivers; other parts
ABOVE_M, BELOW_M = 0.4, 0.5
# What the kart holds: a swatter rises above the driver, a parachute is drawn behind.
HELD_BESIDE_M, HELD_BEHIND_M, HELD_ABOVE_M = 0.4, 1.2, 1.6


@dataclass(frozen=True)
class DecodedDepth:
    """A decoded depth image of h x w pixels."""

    opaque: np.ndarray  # [h, w] bool, False for the sky
    is_object: np.ndarray  # [h, w] bool, pixels of meshes with an origin of their own (karts, items), not of the track
    cell: np.ndarray  # [h, w] int, where that origin is, as the shaders number it
    z: np.ndarray  # [h, w] normalised device depth, -1 to 1
    matrix: np.ndarray  # [4, 4] from world to clip space, on column vectors
    agreement: float  # share of the track's pixels that carry this matrix

    @property
    def has_matrix(self) -> bool:
        """Whether the matrix could be read."""
        return self.agreement >= MIN_AGREEMENT


def decode(depth: np.ndarray) -> DecodedDepth:
    """Decode what the shaders wrote into a depth image [h, w] float32 in [0, 1], the top row first."""
    height, width = depth.shape
    code = np.rint(depth.astype(np.float64) * (shaders.LEVELS - 1)).astype(np.int32)
    opaque = code < shaders.LEVELS - 1  # the sky has no mesh: depth 1
    is_object = opaque & (code % 2 == 1)
    track = code % 2 == 0
    rows = (height - 1 - np.arange(height))[:, None] % shaders.MATRIX_ROWS  # the shader counts rows from below
    columns = np.arange(width)[None, :] % shaders.MATRIX_COLUMNS
    cell = (columns * shaders.MATRIX_ROWS + rows)[track]
    bits = code[track] // 2 % 8
    # majority vote: other shaders' pixels carry noise
    votes = np.bincount(cell * 8 + bits, minlength=shaders.MATRIX_COLUMNS * shaders.MATRIX_ROWS * 8)
    votes = votes.reshape(shaders.MATRIX_COLUMNS, shaders.MATRIX_ROWS, 8)
    agreement = votes.max(2).sum() / max(1, votes.sum()) if votes.any(2).all() else 0.0
    pieces = votes.argmax(2).astype(np.uint64) << (3 * np.arange(shaders.MATRIX_ROWS, dtype=np.uint64))
    floats = (pieces.sum(1) & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
    matrix = floats.astype(np.float64).reshape(4, 4).T  # the shader's are columns
    depths = np.where(is_object, shaders.OBJECT_DEPTHS, shaders.TRACK_DEPTHS)
    z = (code // (shaders.LEVELS // depths) + 0.5) * (2 / depths) - 1
    origin = np.where(is_object, code % (shaders.LEVELS // shaders.OBJECT_DEPTHS) // 2, 0)
    return DecodedDepth(opaque, is_object, origin, z, matrix, float(agreement))


def rotation_matrix(quaternion) -> np.ndarray:
    """Convert the engine's quaternion to [3, 3], a body's axes (right, up, front) as columns.

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


def turn_around(quaternion) -> tuple:
    """Return the engine's quaternion of a body that faces the other way on the same ground."""
    w, x, y, z = quaternion
    return -y, z, w, -x


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Project world points [n, 3] to [n, 3]: x and y in half images from the centre (y up), distance in metres."""
    clip = np.c_[points, np.ones(len(points))] @ matrix.T
    distance = clip[:, 3]
    return np.c_[clip[:, :2] / np.where(np.abs(distance) < 1e-6, 1e-6, distance)[:, None], distance]


def unproject(view: DecodedDepth, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the world points [n, 3] of n pixels."""
    height, width = view.z.shape
    x = (columns + 0.5) / width * 2 - 1
    y = 1 - (rows + 0.5) / height * 2
    points = np.stack([x, y, view.z[rows, columns], np.ones(len(rows))], 1) @ np.linalg.inv(view.matrix).T
    return points[:, :3] / points[:, 3:]


def segment_instances(view: DecodedDepth, karts: list, items: list) -> np.ndarray:
    """Assign each pixel to a kart or an item: [h, w] int, 0 for none, 1 to k the karts, k + 1 and up the items.

    An object's pixel goes to the body with the lowest cost, in this order: the kart whose body the origin of its mesh
    is in or nearest to, if the pixel's point sticks out no farther than wheels and drivers do; the item at the mesh's
    origin; the nearest item within reach; a kart whose held object may reach there. Karts and items are the engine's
    objects, in the game state that was drawn.
    """
    rows, columns = np.nonzero(view.is_object)
    owner = np.zeros(view.is_object.shape, np.int16)
    if not len(rows):
        return owner
    points = unproject(view, rows, columns)
    order = np.argsort(points[:, 0])  # so that each body's points lie in one slice
    rows, columns, points = rows[order], columns[order], points[order]
    cells = view.cell[rows, columns]
    origins = (np.stack([cells % shaders.ORIGIN_CELLS, cells // shaders.ORIGIN_CELLS], 1) + 0.5) * shaders.ORIGIN_CELL_M
    lowest_cost = np.full(len(points), np.inf)
    owners = np.zeros(len(points), np.int16)
    for number, body in enumerate([*karts, *items], 1):
        location = np.asarray(body.location)
        reach, cost_of = (shaders.OBJECT_RADIUS_M, _kart_cost) if number <= len(karts) else (ITEM_RADIUS_M, _item_cost)
        first, end = np.searchsorted(points[:, 0], (location[0] - reach, location[0] + reach))
        near = first + np.flatnonzero((np.abs(points[first:end, 1:] - location[1:]) < reach).all(1))
        if not len(near):
            continue
        # cells repeat: take the origin that is nearest to the body
        period = shaders.ORIGIN_CELL_M * shaders.ORIGIN_CELLS
        offsets = (origins[near] - location[[0, 2]] + period / 2) % period - period / 2
        cost = cost_of(points[near], offsets, cells[near], body)
        lower = cost < lowest_cost[near]
        lowest_cost[near[lower]] = cost[lower]
        owners[near[lower]] = number
    owner[rows, columns] = owners
    return owner


def _kart_cost(points: np.ndarray, offsets: np.ndarray, cells: np.ndarray, kart) -> np.ndarray:
    """Return the cost [n] of assigning points to a kart: below 3 on it, above 5 on what it may hold, inf elsewhere.

    Two karts' bodies never overlap, but boxes widened by shares of their sizes would, so the cost counts by how many
    metres a mesh's origin and its points stick out. Both are needed: lights have their origins up to a metre in front
    of the body, where the next kart may be.

    Args:
        points: [n, 3] in the world.
        offsets: [n, 2] from the kart to the origins of the points' meshes, along x and z.
        cells: [n] of the origins; points of one cell are taken for one mesh.
        kart: the engine's, whose `size` is the body's (width, height, length).
    """
    axes = rotation_matrix(kart.rotation)
    width, height, length = kart.size
    x, y, z = ((points - np.asarray(kart.location)) @ axes).T
    overhang = np.maximum(np.abs(x) - width / 2, np.abs(z) - length / 2)
    # the origins' heights are unknown: assume the kart's underside
    right, up, front = axes.T[:, [0, 2]]
    heights = -(offsets @ up) / max(axes[1, 1], 0.1)
    across, along = offsets @ right + heights * axes[1, 0], offsets @ front + heights * axes[1, 2]
    origin_distance = np.maximum(np.abs(across) - width / 2, np.abs(along) - length / 2)
    is_near = origin_distance < ORIGIN_NEAR_M
    is_own = (overhang < np.where(is_near, OVERHANG_NEAR_M, OVERHANG_M)) & (y < height + ABOVE_M)
    in_reach = is_own
    if kart.attachment.type.name != "NOTHING":
        beside = np.maximum(np.abs(x) - width / 2, z - length / 2) < HELD_BESIDE_M
        in_reach = is_own | (beside & (-z - length / 2 < HELD_BEHIND_M) & (y < height + HELD_ABOVE_M))
    in_reach = in_reach & (origin_distance < ORIGIN_MAX_M) & (y > -BELOW_M)
    # a mesh's mean overhang, so that it stays in one piece
    pixels = np.bincount(cells[in_reach], minlength=shaders.ORIGIN_CELLS**2)
    sums = np.bincount(cells[in_reach], np.maximum(overhang[in_reach], 0), shaders.ORIGIN_CELLS**2)
    cost = np.maximum(origin_distance, 0) + 0.1 * origin_distance
    cost += OVERHANG_WEIGHT * (sums / np.maximum(pixels, 1))[cells]
    return np.where(in_reach, np.where(is_own | is_near, cost, HELD_COST + cost), np.inf)


def _item_cost(points: np.ndarray, offsets: np.ndarray, _, item) -> np.ndarray:
    """Return the cost [n] of assigning points to an item: near 0 on its mesh, 3 to 4 in reach of it, inf elsewhere."""
    distance = np.linalg.norm(points - np.asarray(item.location), axis=1) / ITEM_RADIUS_M
    has_origin = (np.abs(offsets) < ITEM_ORIGIN_TOLERANCE_M).all(1)
    return np.where(distance < 1, np.where(has_origin, ITEM_COST, OTHER_ITEM_COST) + 0.01 * distance, np.inf)


def boxes(owner: np.ndarray, numbers) -> dict[int, list[int]]:
    """Return the boxes of those of `numbers` that are visible in a map of owners [h, w].

    Drawn at 300x200, an edge is at most one pixel of 600x400 from where it is drawn at full size.
    """
    height, width = owner.shape
    scale_x, scale_y = DETECTION_SIZE[0] / width, DETECTION_SIZE[1] / height
    rows, columns = np.nonzero(owner)
    owners = owner[rows, columns]
    found = {}
    for number in sorted(set(numbers) & set(owners.tolist())):
        x, y = columns[owners == number], rows[owners == number]
        if len(x) >= MIN_KART_PIXELS:
            box = (x.min() * scale_x, y.min() * scale_y, (x.max() + 1) * scale_x - 1, (y.max() + 1) * scale_y - 1)
            found[number] = [int(round(value)) for value in box]
    return found
