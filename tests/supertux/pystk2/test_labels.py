"""The label decoder, on depth images as the patched shaders write them, of bodies in known places."""

from types import SimpleNamespace

import numpy as np
import pytest

from supertux.render.engines.pystk2 import labels
from supertux.render.engines.pystk2.labels import (
    boxes,
    decode,
    project,
    rotation_matrix,
    segment_instances,
    turn_around,
    unproject,
)

WIDTH, HEIGHT = 300, 200
FOCAL, NEAR, FAR = 1.3, 1.0, 1000.0


def axes_of(heading: float, pitch: float = 0.0) -> np.ndarray:
    """Return [3, 3] with a body's right, up and front as columns; heading 0 is along z, a quarter turn along x."""
    c, s = np.cos(heading), np.sin(heading)
    yaw = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    c, s = np.cos(pitch), np.sin(pitch)
    return yaw @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])  # a positive pitch looks down


def quaternion(heading: float) -> tuple[float, ...]:
    """Return the engine's quaternion of that heading."""
    return (np.cos(heading / 2), 0.0, -np.sin(heading / 2), 0.0)


def body(location, size=(1.2, 1.0, 2.0), heading: float = 0.0, origin=None) -> SimpleNamespace:
    """Return a kart or item as the engine's; its location is the centre of its underside, the origin of its mesh."""
    nothing = SimpleNamespace(type=SimpleNamespace(name="NOTHING"))
    place = {"location": location, "rotation": quaternion(heading), "heading": heading}
    return SimpleNamespace(**place, size=size, origin=location if origin is None else origin, attachment=nothing)


class Camera:
    """A ray caster for bodies on a plane at height 0."""

    def __init__(self, place=(100.3, 2.5, -40.7), heading=0.4, pitch=0.15):
        self.place, self.axes = np.array(place), axes_of(heading, pitch)
        view = np.eye(4)
        view[:3, :3], view[:3, 3] = self.axes.T, -self.axes.T @ self.place
        a, b = (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)
        lens = np.array([[FOCAL * HEIGHT / WIDTH, 0, 0, 0], [0, FOCAL, 0, 0], [0, 0, a, b], [0, 0, 1, 0]])
        self.matrix = (lens @ view).astype(np.float32)
        x = ((np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1) * WIDTH / HEIGHT / FOCAL
        y = (1 - (np.arange(HEIGHT) + 0.5) / HEIGHT * 2) / FOCAL
        x, y = np.meshgrid(x, y)
        self.rays = np.stack([x, y, np.ones_like(x)], 2) @ self.axes.T  # one metre along the view each
        with np.errstate(divide="ignore"):
            self.ground = np.where(self.rays[..., 1] < 0, -self.place[1] / self.rays[..., 1], np.inf)
        self.ground[self.ground > FAR] = np.inf
        self.a, self.b = a, b

    def at(self, right: float, ahead: float) -> np.ndarray:
        """Return a place on the plane, relative to the camera."""
        front = self.axes[:, 2] * (1, 0, 1)
        place = self.place + right * self.axes[:, 0] + ahead * front / np.linalg.norm(front)
        return place * (1, 0, 1)

    def cast_rays(self, bodies=()) -> tuple[np.ndarray, np.ndarray]:
        """Return each pixel's distance along the view [h, w] and its body: 1, 2, ..., 0 for the plane and the sky."""
        distance, owner = self.ground.copy(), np.zeros((HEIGHT, WIDTH), int)
        for number, one in enumerate(bodies, 1):
            axes, (width, height, length) = axes_of(one.heading), one.size
            start, rays = (self.place - one.location) @ axes, self.rays @ axes
            low, high = np.array([-width / 2, 0, -length / 2]), np.array([width / 2, height, length / 2])
            with np.errstate(divide="ignore"):
                enters, leaves = np.sort([(low - start) / rays, (high - start) / rays], 0)
            enters, leaves = enters.max(2), leaves.min(2)
            hit = (enters < leaves) & (enters > NEAR) & (enters < distance)
            distance[hit], owner[hit] = enters[hit], number
        return distance, owner

    def shade(self, distance: np.ndarray, owner: np.ndarray, bodies=()) -> np.ndarray:
        """Return the depth image [h, w] float32 that the shaders write; the plane's pixels carry the matrix.

        A body's mesh has its origin at the body's `origin`.
        """
        floats = self.matrix.T.reshape(16).view(np.uint32)  # GLSL's matrices are columns
        x, y = np.meshgrid(np.arange(WIDTH), HEIGHT - 1 - np.arange(HEIGHT))  # gl_FragCoord counts from below
        bits = (floats[x % 16] >> (3 * (y % 11)).astype(np.uint32)) & 7
        cells = np.array([[0, 0, 0], *(one.origin for one in bodies)])[owner] // 0.125 % 32
        origin = cells[..., 0] + 32 * cells[..., 2]
        depth = ((self.a + self.b / distance) / 2 + 0.5).astype(np.float32)
        track = np.floor(depth * np.float32(1 << 20)) * np.float32(16) + (2 * bits).astype(np.float32)
        objects = np.floor(depth * np.float32(1 << 13)) * np.float32(2048) + (1 + 2 * origin).astype(np.float32)
        code = np.where(owner > 0, objects, track)
        return np.where(np.isinf(distance), np.float32(1), code / np.float32((1 << 24) - 1)).astype(np.float32)

    def draw(self, bodies=()):
        """Return the distances, the owners, and the decoded depth image."""
        distance, owner = self.cast_rays(bodies)
        return distance, owner, decode(self.shade(distance, owner, bodies))


@pytest.fixture(scope="module")
def camera() -> Camera:
    return Camera()


@pytest.mark.parametrize("heading", [0.0, 0.4, -2.5])
def test_the_matrix_is_decoded_bit_for_bit(heading: float):
    camera = Camera(heading=heading)
    _, owner, view = camera.draw([body(camera.at(0, 8))])
    assert view.agreement == 1 and view.has_matrix
    assert np.array_equal(view.matrix.astype(np.float32).view(np.uint32), camera.matrix.view(np.uint32))
    assert (owner > 0).sum() > 300 and np.array_equal(view.is_object, owner > 0)


def test_the_sky_is_not_opaque(camera: Camera):
    distance, _, view = camera.draw([body(camera.at(-1, 6))])
    assert 0.1 < np.isinf(distance).mean() < 0.6
    assert np.array_equal(view.opaque, np.isfinite(distance))


def test_a_view_with_too_little_ground_has_no_matrix(camera: Camera):
    distance, owner = camera.cast_rays()
    for rows, whole in ((11, True), (10, False), (0, False)):
        sky = distance.copy()
        sky[: HEIGHT - rows] = np.inf
        assert decode(camera.shade(sky, owner)).has_matrix == whole


@pytest.mark.parametrize(("share", "whole"), [(0.01, True), (0.2, False)])
def test_a_few_pixels_of_other_shaders_are_outvoted(camera: Camera, share: float, whole: bool):
    distance, owner = camera.cast_rays()
    depth = camera.shade(distance, owner)
    rng = np.random.default_rng(0)
    wrong = (rng.random(depth.shape) < share) & np.isfinite(distance)
    depth[wrong] = rng.uniform(0.5, 0.99, wrong.sum())
    view = decode(depth)
    assert view.has_matrix == whole
    assert np.array_equal(view.matrix.astype(np.float32), camera.matrix)


def test_projection_inverts_unprojection(camera: Camera):
    distance, owner, view = camera.draw([body(camera.at(0, 8), heading=1.0)])
    rows, columns = np.nonzero(distance < 50)
    points = unproject(view, rows, columns)
    true = camera.place + camera.rays[rows, columns] * distance[rows, columns, None]
    assert np.abs(points - true).max() < 0.02
    assert np.abs(points[owner[rows, columns] == 0, 1]).max() < 0.01  # the plane is at height 0
    x, y, back = project(view.matrix, points).T
    np.testing.assert_allclose(x, (columns + 0.5) / WIDTH * 2 - 1, atol=1e-4)
    np.testing.assert_allclose(y, 1 - (rows + 0.5) / HEIGHT * 2, atol=1e-4)
    np.testing.assert_allclose(back, distance[rows, columns], atol=0.02)


def test_a_point_behind_the_camera_has_a_negative_distance(camera: Camera):
    _, _, view = camera.draw()
    behind, beside = project(view.matrix, np.array([camera.at(0, -5), camera.place + camera.axes[:, 0]]))
    assert behind[2] < -4 and abs(beside[2]) < 1e-3 and np.isfinite(beside).all()


def test_rotation_columns_are_right_up_and_front():
    assert np.allclose(rotation_matrix((1, 0, 0, 0)), np.eye(3))
    right, up, front = rotation_matrix(quaternion(np.pi / 2)).T  # a quarter to the right: x is ahead
    assert np.allclose(front, (1, 0, 0)) and np.allclose(up, (0, 1, 0)) and np.allclose(right, (0, 0, -1))
    assert np.allclose(rotation_matrix(quaternion(0.3)), axes_of(0.3))
    any_other = np.random.default_rng(0).normal(size=4)
    matrix = rotation_matrix(any_other / np.linalg.norm(any_other))
    assert np.allclose(matrix.T @ matrix, np.eye(3)) and np.isclose(np.linalg.det(matrix), 1)


def test_turning_around_keeps_the_ground():
    any_other = np.random.default_rng(0).normal(size=4)
    before = any_other / np.linalg.norm(any_other)
    assert np.allclose(rotation_matrix(turn_around(before)), rotation_matrix(before) * [-1, 1, -1])


def test_separate_karts_get_their_own_pixels(camera: Camera):
    karts = [
        body(camera.at(x, ahead), heading=heading) for x, ahead, heading in ((0, 6, 0.4), (2.5, 9, 1.2), (-3, 12, 3))
    ]
    _, owner, view = camera.draw(karts)
    assert all((owner == number).sum() > 50 for number in (1, 2, 3))
    assert np.array_equal(segment_instances(view, karts, []), owner)


def test_touching_karts_get_the_meshes_whose_origins_are_nearer(camera: Camera):
    karts = [body(camera.at(x, 6), size=(1.0, 0.8, 2.0), heading=0.4) for x in (-0.65, 0.65)]
    # Each has a wheel on top that reaches over the other; the second's has its origin a little outside of its kart.
    right, front = camera.axes[:, 0], axes_of(0.4)[:, 2]
    places = [kart.location + np.array([0, 0.8, 0]) for kart in karts]
    wheels = [
        body(places[0] + 0.42 * right - 0.5 * front, size=(0.66, 0.1, 0.5), heading=0.4),
        body(places[1] - 0.51 * right + 0.5 * front, size=(0.66, 0.1, 0.5), heading=0.4),
    ]
    _, drawn, view = camera.draw([*karts, *wheels])
    assert all((drawn == number).sum() > 20 for number in range(1, 5))
    owner = np.array([0, 1, 2, 1, 2])[drawn]
    assert np.array_equal(segment_instances(view, karts, []), owner)
    assert np.array_equal(np.array([0, 2, 1])[segment_instances(view, karts[::-1], [])], owner)  # in any order


def test_an_item_in_front_of_a_kart_keeps_its_pixels(camera: Camera):
    kart = body(camera.at(0, 7), heading=0.4)
    touched = body(camera.at(0.1, 5.7), size=(0.4, 0.4, 0.4))
    taken = body(kart.location)  # lies under the kart, and is not drawn
    _, owner, view = camera.draw([kart, touched])
    assert min((owner == 1).sum(), (owner == 2).sum()) > 50
    assert np.array_equal(np.array([0, 1, 3, 2])[segment_instances(view, [kart], [taken, touched])], owner)


def test_items_get_their_pixels_and_other_objects_none(camera: Camera):
    kart, item = body(camera.at(-1, 7)), body(camera.at(2, 8), size=(0.5, 0.6, 0.5))
    taken = body(kart.location)  # lies under the kart
    stranger = body(camera.at(4, 14))  # for instance a cone: an object, but neither kart nor item
    _, owner, view = camera.draw([kart, item, stranger])
    assert all((owner == number).sum() > 50 for number in (1, 2, 3))
    found = segment_instances(view, [kart], [taken, item])
    assert np.array_equal(found == 1, owner == 1)
    assert np.array_equal(found == 3, owner == 2)
    assert not found[(owner == 0) | (owner == 3)].any()


def test_a_view_without_objects(camera: Camera):
    _, _, view = camera.draw()
    assert not segment_instances(view, [body(camera.at(0, 8))], []).any()


def test_boxes_go_from_the_first_to_the_last_pixel_of_600x400():
    owner = np.zeros((HEIGHT, WIDTH), int)
    owner[50:60, 100:120] = 1
    owner[55, 130] = 1  # a wheel
    owner[190:, 290:] = 2
    assert boxes(owner, range(1, 5)) == {1: [200, 100, 261, 119], 2: [580, 380, 599, 399]}
    assert boxes(owner, [2]) == {2: [580, 380, 599, 399]}
    whole = np.zeros((400, 600), int)
    whole[7, 3:9] = 1
    assert boxes(whole, [1]) == {1: [3, 7, 8, 7]}


def test_a_kart_with_too_few_pixels_has_no_box():
    owner = np.zeros((HEIGHT, WIDTH), int)
    owner[10, : labels.MIN_KART_PIXELS] = 1
    owner[20, : labels.MIN_KART_PIXELS - 1] = 2
    assert list(boxes(owner, [1, 2])) == [1]
    assert boxes(owner * 0, [1, 2]) == {}
