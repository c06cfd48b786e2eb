"""nano/: views in memory, which of them are drawn, and how they are changed."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from homework.labels.scene import Kart
from homework.models.images import normalise
from pretrain.annotated_scene import Seen, mirror
from pretrain.augment import random_window, zoomed
from pretrain.copy_paste import pasted
from pretrain.dataset import Frames, _each_as_often, targets_of
from pretrain.targets import KARTS, NONE
from tests.tiny_models import stand_still


def flat(name: str, colour: str, box: tuple, background: str = "gray") -> tuple[np.ndarray, Seen]:
    """A view of one colour with a kart of another in the box."""
    image = Image.new("RGB", (150, 100), background)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return np.array(image), Seen("abyss", (Kart(0, name, box),))


def frames_of(*views: tuple[np.ndarray, Seen]) -> Frames:
    """Frames of given views, none more often than another."""
    frames = Frames.__new__(Frames)
    frames.views = np.stack([view for view, _ in views])
    frames.scenes = [scene for _, scene in views]
    return frames


def test_paste_replaces_the_ego_kart_alone():
    """Another view's ego kart takes the place of this one's: its name in the scene, its pixels in the box."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    scene = Seen(scene.track, (Kart(1, "gnu", (10, 10, 20, 20)), *scene.karts))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 81), "white"))
    before = view.copy()
    pasted, changed = frames._paste(view, scene, np.array([0]))
    assert np.array_equal(view, before)  # the views in memory stay as they are
    assert changed.ego.name == "kiki" and changed.ego.box == scene.ego.box and changed.others == scene.others
    assert (pasted[45:65, 65:85] == (0, 255, 0)).all()
    outside = np.ones((100, 150), bool)
    outside[40:71, 60:91] = False
    assert np.array_equal(pasted[outside], view[outside])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Kart(1, "kiki", (10, 10, 20, 20)), id="the kart is there already"),
        pytest.param(Kart(1, "gnu", (88, 40, 120, 70)), id="another kart in the box"),
    ],
)
def test_no_paste_where_other_labels_would_change(other):
    """Two karts of a name, or a kart that would be covered: the view stays as it is."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    scene = Seen(scene.track, (*scene.karts, other))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 81)))
    pasted, same = frames._paste(view, scene, np.array([0]))
    assert same is scene and np.array_equal(pasted, view)


def test_paste_takes_the_donor_of_the_same_shape():
    """A tall kart isn't squeezed into a wide box where another donor fits."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    frames = frames_of(*(flat(*donor) for donor in DONORS_BY_SHAPE))
    _, changed = frames._paste(view, scene, np.arange(3))
    assert changed.ego.name == "xue"


def test_far_karts_are_added_beside_those_that_are_there():
    """A larger ego kart of another view, shrunk into the box; nothing else of the view changes."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 80), background="lime"))
    box, donors, rng = (100, 45, 108, 53), np.array([0]), np.random.default_rng(0)
    added, changed = frames._add(view, scene, [box, (10, 45, 18, 53)], donors, rng)
    assert [kart.name for kart in changed.karts] == ["tux", "kiki"]  # once, however often it was tried
    assert changed.karts[1].box == box and changed.ego is scene.karts[0]
    assert (added[47:52, 102:107, 1] > added[47:52, 102:107, 0] + 100).all()
    outside = np.ones((100, 150), bool)
    outside[45:54, 100:109] = False
    assert np.array_equal(added[outside], view[outside])


def test_an_added_kart_may_be_too_small_to_count():
    """It is drawn and known, and no kart of the scene; another of its name isn't added."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 80), background="lime"))
    boxes = [(100, 45, 104, 51), (10, 45, 18, 53)]
    added, changed = frames._add(view, scene, boxes, np.array([0]), np.random.default_rng(0))
    assert changed.karts == scene.karts and [kart.box for kart in changed.small] == boxes[:1]
    assert (added[46:51, 101:104] != view[46:51, 101:104]).any(-1).all()
    _, changed = frames._add(view, scene, [(70, 37, 76, 43)], np.array([0]), np.random.default_rng(0))
    seen = [kart.box for kart in changed.small]
    assert changed.karts == scene.karts and seen == [(70, 37, 76, 39)]  # the near kart hides the rest


def test_an_added_kart_stands_behind_a_larger_one():
    """What the near kart covers of it isn't drawn and isn't in its box."""
    view, scene = flat("tux", "red", (60, 40, 90, 70))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 80), background="lime"))
    added, changed = frames._add(view, scene, [(70, 33, 80, 43)], np.array([0]), np.random.default_rng(0))
    assert changed.karts[1].box == (70, 33, 80, 39) and changed.ego.name == "tux"
    assert np.array_equal(added[40:], view[40:]) and (added[35:39, 72:79] != view[35:39, 72:79]).any(-1).all()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((70, 45, 80, 55), id="all of it would be covered"),
        pytest.param((70, 32, 76, 42), id="less than the label rule takes would be seen"),
        pytest.param((70, 34, 76, 38), id="less would be seen than can be recognised"),
        pytest.param((50, 30, 95, 75), id="it would cover a smaller kart"),
    ],
)
def test_no_kart_is_added_where_none_can_stand(box):
    view, scene = flat("tux", "red", (60, 36, 90, 70))
    frames = frames_of(flat("kiki", "lime", (70, 50, 100, 80)))
    same, unchanged = frames._add(view, scene, [box], np.array([0]), np.random.default_rng(0))
    assert unchanged.karts == scene.karts and np.array_equal(same, view)


def test_windows_of_the_foveas_size_hold_more_karts(frames):
    """Their cells say which kart is where; a view of the tiny split has two karts at most in 4 of 5 cases."""
    frames.places = [(70, 45, 78, 53)]
    pixels, targets = frames.windows(np.random.default_rng(0), 16)
    assert pixels.shape == (16, 3, 32, 96) and targets["kart"].shape == targets["weight"].shape == (16, 8, 24)
    assert targets["token"].shape == (16, 48, len(KARTS) + 1)
    karts = [len(set(cells.flatten().tolist()) - {NONE, -1}) for cells in targets["kart"]]
    assert np.mean(karts) > 1.5


def test_light_of_the_place_comes_with_a_kart():
    """A grey kart from a bright view is darker in a dark one, as much as it is asked to be."""
    donor = np.full((100, 150, 3), 200, np.uint8)
    dark = np.full((100, 150, 3), 100, np.uint8)
    box = (70, 45, 90, 65)
    middle = [int(pasted(dark, box, donor, box, matched)[55, 80, 0]) for matched in (0, 0.5, 1)]
    assert middle[0] == 200 and 130 < middle[1] < 160 and 95 < middle[2] < 110


DONORS_BY_SHAPE = (
    ("kiki", "lime", (70, 20, 80, 90)),  # tall
    ("gnu", "blue", (70, 50, 82, 62)),  # of this shape, but it would be blown up
    ("xue", "cyan", (50, 30, 82, 62)),
)


def detection(kart: Kart) -> list[int]:
    """As a frame's info has it: in pixels of 600x400."""
    return [1, kart.track_id, *(4 * side for side in kart.box)]


def test_zoomed_view_is_labelled_by_the_rule():
    """Of a part of a view: a kart outside is gone, one that was too small counts, the ego is the new middle's."""
    karts = [
        Kart(0, "tux", (60, 40, 70, 50)),
        Kart(1, "gnu", (100, 60, 104, 64)),  # 4 pixels: too few
        Kart(2, "xue", (5, 5, 25, 25)),
    ]
    info = {"track": "abyss", "karts": ["tux", "gnu", "xue"], "detections": [[], list(map(detection, karts))]}
    view = np.zeros((100, 150, 3), np.uint8)
    view[60:65, 100:105] = 255
    whole, scene = zoomed(view, info, 1, (0.0, 0.0, 150.0))
    assert np.array_equal(whole, view) and [kart.name for kart in scene.karts] == ["tux", "xue"]
    assert scene.ego.box == karts[0].box
    image, scene = zoomed(view, info, 1, (50.0, 30.0, 100.0))  # on the right, 1.5 times as large
    assert {kart.name: kart.box for kart in scene.karts} == {"tux": (15, 15, 30, 30), "gnu": (75, 45, 81, 51)}
    assert scene.ego.name == "gnu"
    bright = np.argwhere(image[..., 0] > 127)
    assert np.abs(bright.min(0) - (45, 75)).max() <= 1 and np.abs(bright.max(0) - (52, 82)).max() <= 1


def test_windows_lie_in_the_view():
    """A part of a view is never larger than the view, nor beside it, and has its shape."""
    rng = np.random.default_rng(0)
    windows = np.array([random_window(rng) for _ in range(500)])
    left, top, width = windows.T
    assert (windows >= 0).all() and (left + width <= 150).all() and (top + width / 1.5 <= 100).all()
    assert 119 < width.min() < 125 and width.max() > 148


def test_augmented_batch_shows_what_its_scenes_say(frames):
    """Targets are those of the scenes; a mirrored image has the mirrored scene."""
    mirrored = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        pixels, targets, scenes = frames.augmented(rng, 8, paste=0, crop=0, zoom=0, added=0)
        assert pixels.shape == (8, 3, 100, 150) and pixels.abs().max() <= 1
        for name, target in targets_of(scenes).items():
            assert torch.equal(target, targets[name]), name
        for image, scene in zip(pixels, scenes, strict=True):
            flipped = scene not in frames.scenes
            plain = mirror(scene) if flipped else scene
            stored = normalise(frames.views[frames.scenes.index(plain)])
            stored = stored.flip(-1) if flipped else stored
            likeness = np.corrcoef(stored.flatten(), image.flatten())[0, 1]
            assert likeness > 0.9
            mirrored += flipped
    assert 20 < mirrored < 60


def test_cropped_batch_shows_the_middle(frames):
    """The columns of the grader's CLIP crop, with the targets of its cells and the whole view's scene."""
    pixels, targets, scenes = frames.augmented(np.random.default_rng(0), 4, crop=1.0)
    assert pixels.shape == (4, 3, 100, 100)
    assert targets["kart"].shape == (4, 13, 13) and targets["total"].tolist() == [len(s.karts) for s in scenes]


def test_crowded_views_can_be_drawn_more_often(frames):
    """Of the tiny split's 9 views 3 hold three karts, 3 two, 2 one and 1 none: with a chance of 7, 4 and 1."""
    shares = []
    for crowded in (0.0, 3.0):
        _, _, scenes = frames.augmented(np.random.default_rng(0), 400, crowded=crowded, zoom=0, added=0)
        shares.append(np.mean([len(scene.karts) > 1 for scene in scenes]))
    assert shares[0] == pytest.approx(6 / 9, abs=0.08) and shares[1] == pytest.approx(33 / 36, abs=0.06)


def test_repeated_moment_counts_as_its_root(tiny_data):
    """A moment taken 4 times over is drawn as often as 2, not 4; splits are drawn equally often."""
    stand_still(tiny_data / "train", 4)
    frames = Frames(tiny_data, ["train", "valid"])
    chances = dict.fromkeys(("repeated", "train", "valid"), 0.0)
    for file, chance in zip(frames.files, frames.chances, strict=True):
        repeated = file.startswith(("train/00000", "train/000b"))
        chances["repeated" if repeated else file.split("/")[0]] += chance
    # two of three moments of train are drawn once each
    assert chances["repeated"] == pytest.approx(2 / 4) and chances["train"] == pytest.approx(2 / 4)
    assert chances["valid"] == pytest.approx(1)


def test_held_out_moment_is_held_out_whole(tiny_data):
    """No copy of a moment that is kept for choosing is trained on."""
    stand_still(tiny_data / "train", 4)
    trained = Frames(tiny_data, ["train"], lambda moment: moment > 0)
    held_out = Frames(tiny_data, ["train"], lambda moment: moment == 0)
    assert len(held_out) == 4 * 3 and len(trained) == 2 * 3
    assert not {file.split("_")[0] for file in trained.files} & {file.split("_")[0] for file in held_out.files}


def test_frames_of_several_splits_are_one(tiny_data, frames):
    both = Frames(tiny_data, ["train", "valid"])
    alone = Frames(tiny_data, ["valid"])
    assert both.files == frames.files + alone.files
    assert np.array_equal(both.views[len(frames) :], alone.views)


def test_splits_joined_by_a_plus_take_turns_as_one(tiny_data, frames):
    """Their views are as many as apart, but all of them together are drawn as often as one other split."""
    shutil.copytree(tiny_data / "train", tiny_data / "more")
    shutil.copytree(tiny_data / "train", tiny_data / "own")
    joined = Frames(tiny_data, ["train", "own+more"])
    assert len(joined) == 3 * len(frames)
    assert joined.chances[: len(frames)].sum() == pytest.approx(joined.chances[len(frames) :].sum())


def test_each_kart_is_pasted_as_often_as_any_other(frames):
    """However many views show it: some karts are in one split alone."""
    frames.scenes = [Seen("abyss", (Kart(0, name, (60, 40, 90, 70)),)) for name in ["tux"] * 8 + ["gnu"]]
    frames.alone, frames.chances = np.arange(9), np.full(9, 1 / 9)
    frames.alone_chances = _each_as_often([scene.ego.name for scene in frames.scenes], frames.chances)
    donors = frames._donors(np.random.default_rng(0), 200).ravel()
    assert 0.4 < np.mean(donors == 8) < 0.6 and len(set(donors)) == 9
