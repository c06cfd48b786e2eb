"""The targets of the shape `boxes`."""

import numpy as np
import pytest

from homework.labels.scene import Kart
from pretrain.box_targets import box_targets
from pretrain.targets import KART_ID, UNKNOWN, AnnotatedScene
from tests.tiny_models import SCENE


def cell_targets(scenes: list[AnnotatedScene], *columns: int) -> dict[str, np.ndarray]:
    """Build the targets as arrays."""
    return {name: values.numpy() for name, values in box_targets(scenes, *columns).items()}


def move(scene: AnnotatedScene, right: int) -> AnnotatedScene:
    """Move all karts to the right."""
    moved = lambda kart: kart._replace(box=(kart.box[0] + right, kart.box[1], kart.box[2] + right, kart.box[3]))
    return AnnotatedScene(scene.track, tuple(map(moved, scene.karts)), tuple(map(moved, scene.small)))


def test_mirrored_cell_targets():
    """A mirrored scene has the mirrored cells, if its karts move by the half cell between the axes of both."""
    # the cells' axis is at pixel 74, the middle of the cells at 0 and 148; the image's is at 75
    plain, flipped = cell_targets([SCENE]), cell_targets([move(SCENE, 2).mirror()])
    for name in ("is_center", "large", "size", "name", "name_weight"):
        assert np.array_equal(flipped[name], plain[name][:, :, ::-1]), name
    assert np.allclose(flipped["heat"], plain["heat"][:, :, ::-1])
    assert np.allclose(flipped["offset"], plain["offset"][:, :, ::-1] * (-1, 1)) and plain["is_center"].sum() == 3
    # without the move, centres are as far from the mirrored ones in cells as the axes are
    unmoved = cell_targets([SCENE.mirror()])
    centers = [sorted(_centers(targets)) for targets in (plain, unmoved)]
    mirrored = sorted((150 - x, y) for x, y in centers[0])
    assert np.allclose(centers[1], mirrored)


def _centers(targets: dict[str, np.ndarray]) -> list[tuple[float, float]]:
    """Return the centres (x, y) in pixels that the cells of one scene hold."""
    offset = targets["offset"][0]
    return [tuple(4 * ((c, r) + offset[r, c])) for r, c in np.argwhere(targets["is_center"][0])]


def test_cells_hold_boxes():
    """A centre's cell holds the log of the box's sides and the centre's offset from the cell's, in cells."""
    maps = cell_targets([SCENE])
    x1, y1, x2, y2 = SCENE.karts[1].box  # centre (25, 34): row 8, whose centre is at 32, column 6, at 24
    assert maps["is_center"][0, 8, 6] and maps["large"][0, 8, 6] and maps["name"][0, 8, 6] == KART_ID["gnu"]
    assert maps["size"][0, 8, 6] == pytest.approx(np.log([x2 - x1, y2 - y1]))
    assert maps["offset"][0, 8, 6] == pytest.approx([1 / 4, 2 / 4])
    for name in ("size", "offset", "large"):
        assert not maps[name][0][~maps["is_center"][0]].any()
    assert maps["heat"].shape == (1, 25, 38) and maps["size"].shape == (1, 25, 38, 2)


def test_heat_falls_off_around_centres():
    """It is 1 at centres alone, and a larger kart has a wider slope than a far one."""
    far, near = Kart(0, "tux", (37, 47, 43, 53)), Kart(1, "gnu", (90, 20, 150, 80))
    heat = cell_targets([AnnotatedScene("abyss", (far, near))])["heat"][0]
    assert sorted(map(tuple, np.argwhere(heat == 1).tolist())) == [(12, 10), (12, 30)]
    assert 0 < heat[12, 11] < 0.1 < 0.5 < heat[12, 31] < 1 and heat[12, 20] < 1e-3 and heat[2, 10] < 1e-3


def test_names_are_learned_in_the_middle_of_a_kart():
    """Each kart's centre weighs 1, and the cells of the inner half of its box at most 1 more together."""
    far, near = Kart(0, "tux", (37, 47, 43, 53)), Kart(1, "gnu", (90, 20, 150, 80))
    maps = cell_targets([AnnotatedScene("abyss", (far, near))])
    name, weight = maps["name"][0], maps["name_weight"][0]
    core = np.argwhere(name == KART_ID["gnu"]) * 4
    assert core.min(0).tolist() == [36, 108] and core.max(0).tolist() == [64, 132]  # of 20 to 80, and 90 to 150
    assert weight[12, 30] == 1 == weight[12, 10] and weight[name == KART_ID["gnu"]].sum() == pytest.approx(2, abs=0.1)
    assert (name[weight == 0] == UNKNOWN).all() and (name[weight > 0] != UNKNOWN).all()


def test_where_two_karts_meet_the_nearer_one_counts():
    """In a shared cell it is the target, and the far kart's centre keeps its name within the near kart's box."""
    near, hidden = Kart(0, "gnu", (60, 40, 90, 70)), Kart(1, "tux", (72, 50, 80, 60))
    for karts in ((near, hidden), (hidden, near)):
        maps = cell_targets([AnnotatedScene("abyss", karts)])
        assert maps["is_center"].sum() == 1 and maps["name"][0, 14, 19] == KART_ID["gnu"]
        assert maps["size"][0, 14, 19] == pytest.approx(np.log([30, 30]))
        beside = hidden._replace(box=(76, 50, 84, 60))  # its centre lies in the next cell
        maps = cell_targets([AnnotatedScene("abyss", tuple(beside if kart is hidden else kart for kart in karts))])
        names = [KART_ID[name] for name in ("gnu", "gnu", "gnu", "tux")]
        assert maps["is_center"].sum() == 2 and maps["name"][0, 14, 17:21].tolist() == names


def test_crop_drops_karts_outside():
    """With the centre columns only, cells begin at the first column, and a kart whose centre is cut off has none."""
    scene = AnnotatedScene("abyss", (SCENE.karts[0], Kart(1, "gnu", (0, 20, 20, 40)), Kart(2, "xue", (24, 60, 34, 70))))
    maps = cell_targets([scene], 25, 100)
    assert maps["heat"].shape == (1, 25, 25) and maps["is_center"].sum() == 2
    assert maps["name"][0, 16, 1] == KART_ID["xue"]  # the cell of (29, 65)
    assert maps["offset"][0, 16, 1] == pytest.approx([0, 0.25]) and KART_ID["gnu"] not in maps["name"]


@pytest.mark.parametrize("box", [(0, 0, 6, 6), (143, 93, 149, 99), (0, 93, 6, 99), (146, 40, 152, 60)])
def test_karts_at_the_border_have_a_cell(box):
    """Beyond the last cell's centre too."""
    maps = cell_targets([AnnotatedScene("abyss", (Kart(0, "tux", box),))])
    ((x, y),) = _centers(maps)
    assert (x, y) == ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def test_a_kart_of_an_unknown_name_is_a_target_without_a_name():
    maps = cell_targets([AnnotatedScene("abyss", (Kart(0, "sonic", (60, 40, 90, 71)),))])
    assert maps["is_center"].sum() == maps["large"].sum() == 1 and (maps["name"] == UNKNOWN).all()
