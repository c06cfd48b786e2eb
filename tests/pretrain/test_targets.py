"""Dense targets of a scene."""

import numpy as np
import pytest

from homework.labels.questions import qa_pairs
from homework.labels.scene import Kart
from pretrain.targets import (
    BACKGROUND,
    KART_ID,
    SIZE_THRESHOLDS_PX,
    TRACK_ID,
    UNKNOWN,
    AnnotatedScene,
    annotated_scene,
    cell_targets,
    image_targets,
)
from tests.tiny_models import SCENE


def test_mirror_swaps_left_and_right():
    """In a flipped image's answers left and right change places, and everything else stays."""
    before, after = dict(qa_pairs(SCENE)), dict(qa_pairs(SCENE.mirror()))
    swap = {"left": "right", "right": "left"}
    for question, answer in before.items():
        mirrored = " ".join(swap.get(word, word) for word in question.split()) if "How many" in question else question
        answered = answer if "How many" in question else " ".join(swap.get(word, word) for word in answer.split())
        assert after[mirrored] == answered, question
    assert before != after and SCENE.mirror().mirror() == SCENE


def test_mirrored_image_targets():
    """In a flipped image's targets counts of left and right are swapped, and sides negated."""
    plain, flipped = image_targets([SCENE]), image_targets([SCENE.mirror()])
    for name in ("ego", "total", "track"):
        assert plain[name] == flipped[name]
    assert plain["ego"] == KART_ID["tux"] and plain["track"] == TRACK_ID["abyss"] and plain["total"] == 3
    assert flipped["count"][0].tolist() == plain["count"][0][[1, 0, 2, 3]].tolist() == [1, 1, 1, 1]
    for name in ("gnu", "xue"):
        present, left, front = plain["relation"][0, KART_ID[name]]
        assert flipped["relation"][0, KART_ID[name]].tolist() == [present, 1 - left, front]
    assert plain["relation"][0, KART_ID["tux"], 0] == 0  # the ego kart has no relation to itself


def test_mirrored_cell_maps():
    """A flipped scene's cells are the flipped cells, in a view of 19 columns 8 pixels apart, from 0 to 144."""
    # the grid's axis is at pixel 72 and the image's at 75: a scene that is 6 pixels wider on the right fits both
    plain = cell_targets([SCENE], width=150)
    shifted = AnnotatedScene(
        SCENE.track, tuple(k._replace(box=(k.box[0] + 6, k.box[1], k.box[2] + 6, k.box[3])) for k in SCENE.karts)
    )
    flipped = cell_targets([shifted.mirror()], width=150)
    assert np.array_equal(flipped["kart"][0], plain["kart"][0][:, ::-1])
    assert np.array_equal(flipped["center"][0].sum(0), plain["center"][0].sum(0)[::-1])
    assert flipped["box"][..., :2].sum() == plain["box"][..., :2].sum()
    assert plain["center"].sum() == 3 and set(np.unique(plain["kart"])) == {
        BACKGROUND,
        *map(KART_ID.get, ("tux", "gnu", "xue")),
    }


def test_cells_hold_boxes():
    """A centre's cell holds the log of the box's sides and the centre's offset from the cell's, in cells."""
    maps = cell_targets([SCENE])
    x1, y1, x2, y2 = SCENE.karts[1].box  # centre (25, 34): row 4, whose centre is at 32, column 3, at 24
    assert maps["center"][0, 4, 3]
    assert maps["box"][0, 4, 3] == pytest.approx([np.log(x2 - x1), np.log(y2 - y1), 1 / 8, 2 / 8], abs=1e-2)
    assert not maps["box"][0][~maps["center"][0]].any()


def side_at(scene: AnnotatedScene, row: int, column: int) -> list[int]:
    """Return (left, in front) of a cell of 16 pixels."""
    return cell_targets([scene])["side"].reshape(7, 10, 2)[row, column].tolist()


def test_cells_hold_the_sides_of_other_karts():
    """A kart's cell holds whether it is left and in front of the ego kart; other cells are unknown."""
    assert side_at(SCENE, 2, 2) == [1, 1]  # gnu
    assert side_at(SCENE, 5, 7) == [0, 0]  # xue
    side = cell_targets([SCENE])["side"]
    assert (side != UNKNOWN).sum() == 4  # the ego kart's cell has no side
    assert side_at(SCENE.mirror(), 2, 8) == [0, 1]  # gnu, now on the right


def test_sides_that_differ_within_a_cell_are_unknown():
    """Two karts in a cell are both on the left, and one is in front: its left target is known, front is not."""
    ego = Kart(0, "tux", (60, 30, 90, 60))
    above, below = Kart(1, "gnu", (28, 38, 40, 50)), Kart(2, "xue", (28, 44, 40, 56))
    third = Kart(3, "kiki", (28, 40, 40, 60))
    assert above.center[1] < ego.center[1] < below.center[1]
    for karts in ((above, below), (below, above), (above, below, third)):
        row, column = 3, 2
        assert side_at(AnnotatedScene("abyss", (ego, *karts)), row, column) == [1, UNKNOWN]


def test_crop_drops_karts_outside():
    """With the centre columns only, a kart whose centre is cut off is in no cell's token."""
    inside = AnnotatedScene("abyss", (SCENE.karts[0], Kart(1, "gnu", (0, 20, 20, 40))))
    token = cell_targets([inside], 25, 100)["token"][0]
    assert token[:, KART_ID["tux"]].any() and not token[:, KART_ID["gnu"]].any()
    assert token[:, BACKGROUND].sum() == 1  # the ego kart's cell


# in pixels of a 600x400 image; at 150x100 gnu's box is 5x4, too small for the label rule, and xue's 1x1
INFO = {
    "track": "abyss",
    "karts": ["tux", "gnu", "xue"],
    "detections": [
        [[1, 0, 240, 160, 360, 284], [1, 1, 320, 150, 340, 167], [2, 1, 0, 0, 50, 50], [1, 2, 80, 150, 84, 154]]
    ],
}


def test_karts_below_the_label_rule_are_annotated():
    """Karts that the label rule leaves out are kept as small, unless they are too small to be visible at all."""
    scene = annotated_scene(INFO, 0)
    assert [kart.name for kart in scene.karts] == ["tux"]
    assert [(kart.name, kart.box) for kart in scene.small] == [("gnu", (80, 37, 85, 41))]
    assert scene.mirror().small[0].box == (65, 37, 70, 41) and scene.mirror().mirror() == scene
    plain = AnnotatedScene(scene.track, scene.karts)
    for name, target in image_targets([scene]).items():
        assert np.array_equal(target, image_targets([plain])[name])


def test_fovea_cells_hold_karts_below_the_label_rule():
    """The fovea's cells have their names and sizes, but no token does."""
    maps = cell_targets([annotated_scene(INFO, 0)])
    assert maps["foveal_kart"][0, 2, 14] == KART_ID["gnu"]  # the cell of (83, 39), 4 pixels wide, from (27, 32) on
    width, height = maps["foveal_map_size"][0, 2, 14].reshape(2, -1)
    assert width.tolist() == [size <= 5 for size in SIZE_THRESHOLDS_PX] and height.tolist() == [
        size <= 4 for size in SIZE_THRESHOLDS_PX
    ]
    measured = (maps["foveal_map_size"] != UNKNOWN).all(-1)
    assert measured.sum() == 2 and (maps["foveal_map_size"][~measured] == UNKNOWN).all()  # tux too
    assert (maps["foveal_token_size"] != UNKNOWN).all(-1).sum() == 2
    assert not maps["token"][..., KART_ID["gnu"]].any() and not maps["foveal_token"][..., KART_ID["gnu"]].any()
