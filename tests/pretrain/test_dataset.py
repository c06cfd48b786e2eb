"""Views in memory: their sampling and augmentation."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from homework.labels.scene import Kart
from homework.models.images import normalise
from pretrain.augment import paste_patch, random_window, zoom_view
from pretrain.config import CPU_CONFIG, AugmentConfig, load_config
from pretrain.dataset import PretrainDataset, _balance_classes, build_targets
from pretrain.targets import BACKGROUND, KARTS, AnnotatedScene, annotated_scene
from tests.tiny_models import stand_still

AUGMENT = load_config(CPU_CONFIG).augment


def augmentation(hardness_weight: float = 0.0, **changes: float) -> AugmentConfig:
    """Return the settings with nothing but flips and colours, except for changes."""
    plain = {"zoom_prob": 0, "swap_ego_prob": 0, "add_karts_prob": 0, "center_crop_prob": 0}
    return replace(AUGMENT, hardness_weight=hardness_weight, **plain | changes)


def flat_view(name: str, colour: str, box: tuple, background: str = "gray") -> tuple[np.ndarray, AnnotatedScene]:
    """Build a view of one colour with a kart of another in the box."""
    image = Image.new("RGB", (150, 100), background)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return np.array(image), AnnotatedScene("abyss", (Kart(0, name, box),))


def dataset_of(*views: tuple[np.ndarray, AnnotatedScene]) -> PretrainDataset:
    """Build a dataset of given views, without probabilities."""
    frames = PretrainDataset.__new__(PretrainDataset)
    frames.views = np.stack([view for view, _ in views])
    frames.scenes = [scene for _, scene in views]
    return frames


def test_swap_ego_replaces_only_the_ego_kart():
    """The scene gets the source's kart name, the box its pixels; everything else stays."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    scene = AnnotatedScene(scene.track, (Kart(1, "gnu", (10, 10, 20, 20)), *scene.karts))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 81), "white"))
    before = view.copy()
    swapped, changed = frames._swap_ego(view, scene, np.array([0]))
    assert np.array_equal(view, before)  # the views in memory are not modified
    assert changed.ego.name == "kiki" and changed.ego.box == scene.ego.box and changed.others == scene.others
    assert (swapped[45:65, 65:85] == (0, 255, 0)).all()
    outside = np.ones((100, 150), bool)
    outside[40:71, 60:91] = False
    assert np.array_equal(swapped[outside], view[outside])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Kart(1, "kiki", (10, 10, 20, 20)), id="kart already in the view"),
        pytest.param(Kart(1, "gnu", (88, 40, 120, 70)), id="another kart in the box"),
    ],
)
def test_swap_ego_leaves_views_whose_other_labels_would_change(other):
    """A second kart of the same name, or a covered kart, would make the labels wrong."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    scene = AnnotatedScene(scene.track, (*scene.karts, other))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 81)))
    swapped, same = frames._swap_ego(view, scene, np.array([0]))
    assert same is scene and np.array_equal(swapped, view)


def test_swap_ego_chooses_the_source_of_the_most_similar_shape():
    """A tall kart is not squeezed into a wide box if another source fits better."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    frames = dataset_of(*(flat_view(*source) for source in SOURCES_BY_SHAPE))
    _, changed = frames._swap_ego(view, scene, np.arange(3))
    assert changed.ego.name == "xue"


def test_copy_paste_adds_shrunk_karts():
    """The box shows a larger ego kart of another view; nothing else of the view changes."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 80), background="lime"))
    box, sources, rng = (100, 45, 108, 53), np.array([0]), np.random.default_rng(0)
    added, changed = frames._copy_paste(view, scene, [box, (10, 45, 18, 53)], sources, rng, 0.4)
    assert [kart.name for kart in changed.karts] == ["tux", "kiki"]  # each name once
    assert changed.karts[1].box == box and changed.ego is scene.karts[0]
    assert (added[47:52, 102:107, 1] > added[47:52, 102:107, 0] + 100).all()
    outside = np.ones((100, 150), bool)
    outside[45:54, 100:109] = False
    assert np.array_equal(added[outside], view[outside])


def test_copy_paste_adds_karts_below_the_label_rule():
    """A pasted kart below the size threshold is annotated as small, and its name is not added twice."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 80), background="lime"))
    boxes = [(100, 45, 104, 51), (10, 45, 18, 53)]
    added, changed = frames._copy_paste(view, scene, boxes, np.array([0]), np.random.default_rng(0), 0.4)
    assert changed.karts == scene.karts and [kart.box for kart in changed.small] == boxes[:1]
    assert (added[46:51, 101:104] != view[46:51, 101:104]).any(-1).all()
    _, changed = frames._copy_paste(view, scene, [(70, 37, 76, 43)], np.array([0]), np.random.default_rng(0), 0.4)
    visible = [kart.box for kart in changed.small]
    assert changed.karts == scene.karts and visible == [(70, 37, 76, 39)]  # the near kart hides the rest


def test_copy_paste_puts_karts_behind_larger_ones():
    """The part that the near kart covers is neither drawn nor in the box."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 80), background="lime"))
    added, changed = frames._copy_paste(view, scene, [(70, 33, 80, 43)], np.array([0]), np.random.default_rng(0), 0.4)
    assert changed.karts[1].box == (70, 33, 80, 39) and changed.ego.name == "tux"
    assert np.array_equal(added[40:], view[40:]) and (added[35:39, 72:79] != view[35:39, 72:79]).any(-1).all()


@pytest.mark.parametrize(
    ("box", "visible"), [((-6, 20, 9, 35), (0, 20, 9, 35)), ((139, 20, 154, 35), (139, 20, 149, 35))]
)
def test_copy_paste_cuts_karts_at_the_border(box, visible):
    """The part in the view is drawn, with the scale of the whole, and is the kart's box."""
    view, scene = flat_view("tux", "red", (60, 40, 90, 70))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 80), background="lime"))
    added, changed = frames._copy_paste(view, scene, [box], np.array([0]), np.random.default_rng(0), 0.4)
    assert [kart.box for kart in changed.karts] == [(60, 40, 90, 70), visible]
    x1, y1, x2, y2 = visible
    drawn = (added != view).any(-1)
    assert drawn[y1 + 3 : y2 - 2, x1 + 3 : x2 - 2].all() and drawn.sum() == drawn[y1 : y2 + 1, x1 : x2 + 1].sum()
    assert drawn[y1 + 8, 0 if x1 == 0 else 149]  # no soft edge where the border cuts


def test_added_boxes_are_those_of_other_views(frames):
    """They are below the size given; some are moved to the nearest kart, and some across the border."""
    rng, scene = np.random.default_rng(0), frames.scenes[0]
    config = replace(AUGMENT, max_added_px=16, occluded_prob=0.0, border_prob=0.5)
    boxes = [box for _ in range(100) for box in frames._sample_boxes(scene, rng, config)]
    kept = [box for box in boxes if box in frames.boxes]
    assert 0.4 < len(kept) / len(boxes) < 0.6 and {min(x2 - x1, y2 - y1) for x1, y1, x2, y2 in boxes} == {15}
    assert all((box[0] < 0) != (box[2] > 149) for box in boxes if box not in kept)
    assert frames._sample_boxes(scene, rng, replace(config, max_added_px=5)) == []


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((70, 45, 80, 55), id="fully occluded"),
        pytest.param((70, 32, 76, 42), id="visible part below the label rule"),
        pytest.param((70, 34, 76, 38), id="too little visible"),
        pytest.param((50, 30, 95, 75), id="would cover a smaller kart"),
    ],
)
def test_copy_paste_skips_boxes_without_space(box):
    view, scene = flat_view("tux", "red", (60, 36, 90, 70))
    frames = dataset_of(flat_view("kiki", "lime", (70, 50, 100, 80)))
    same, unchanged = frames._copy_paste(view, scene, [box], np.array([0]), np.random.default_rng(0), 0.4)
    assert unchanged.karts == scene.karts and np.array_equal(same, view)


def test_windows_hold_more_karts_than_views(frames):
    """Windows of the fovea's size hold more than 1.5 karts on average; most tiny views hold at most two."""
    frames.boxes = [(70, 45, 78, 53)]
    pixels, targets = frames.sample_windows(np.random.default_rng(0), 16, AUGMENT)
    assert pixels.shape == (16, 3, 32, 96) and targets["kart"].shape == targets["weight"].shape == (16, 8, 24)
    assert targets["token"].shape == (16, 48, len(KARTS) + 1)
    karts = [len(set(cells.flatten().tolist()) - {BACKGROUND, -1}) for cells in targets["kart"]]
    assert np.mean(karts) > 1.5


def test_pasted_kart_takes_the_light_of_its_new_place():
    """A grey kart from a bright view gets darker in a dark one, in proportion to `light_match`."""
    source = np.full((100, 150, 3), 200, np.uint8)
    dark = np.full((100, 150, 3), 100, np.uint8)
    box = (70, 45, 90, 65)
    middle = [int(paste_patch(dark, box, source, box, light_match)[55, 80, 0]) for light_match in (0, 0.5, 1)]
    assert middle[0] == 200 and 130 < middle[1] < 160 and 95 < middle[2] < 110


SOURCES_BY_SHAPE = (
    ("kiki", "lime", (70, 20, 80, 90)),  # tall
    ("gnu", "blue", (70, 50, 82, 62)),  # of this shape, but it would be enlarged
    ("xue", "cyan", (50, 30, 82, 62)),
)


def detection(kart: Kart) -> list[int]:
    """Build a detection as in a frame's info, in pixels of 600x400."""
    return [1, kart.track_id, *(4 * side for side in kart.box)]


def zoom(view: np.ndarray, info: dict, window: tuple) -> tuple[np.ndarray, AnnotatedScene]:
    """Zoom into view 1 of a frame."""
    image, detections = zoom_view(view, info["detections"][1], window)
    return image, annotated_scene(info | {"detections": [detections]}, 0)


def test_zoomed_view_is_labelled_by_the_rule():
    """A kart outside the window is gone, one that was too small is large enough, the ego kart is the new centre's."""
    karts = [
        Kart(0, "tux", (60, 40, 70, 50)),
        Kart(1, "gnu", (100, 60, 104, 64)),  # 4 pixels: too small
        Kart(2, "xue", (5, 5, 25, 25)),
    ]
    info = {"track": "abyss", "karts": ["tux", "gnu", "xue"], "detections": [[], list(map(detection, karts))]}
    view = np.zeros((100, 150, 3), np.uint8)
    view[60:65, 100:105] = 255
    whole, scene = zoom(view, info, (0.0, 0.0, 150.0))
    assert np.array_equal(whole, view) and [kart.name for kart in scene.karts] == ["tux", "xue"]
    assert scene.ego.box == karts[0].box
    image, scene = zoom(view, info, (50.0, 30.0, 100.0))  # on the right, 1.5 times as large
    assert {kart.name: kart.box for kart in scene.karts} == {"tux": (15, 15, 30, 30), "gnu": (75, 45, 81, 51)}
    assert scene.ego.name == "gnu"
    bright = np.argwhere(image[..., 0] > 127)
    assert np.abs(bright.min(0) - (45, 75)).max() <= 1 and np.abs(bright.max(0) - (52, 82)).max() <= 1


def test_zoom_windows_lie_in_the_view():
    rng = np.random.default_rng(0)
    windows = np.array([random_window(rng, 1.25) for _ in range(500)])
    left, top, width = windows.T
    assert (windows >= 0).all() and (left + width <= 150).all() and (top + width / 1.5 <= 100).all()
    assert 119 < width.min() < 125 and width.max() > 148


def test_sampled_batch_matches_its_scenes(frames):
    """A flipped image has the flipped scene, any other the stored one."""
    mirrored = 0
    for seed in range(10):
        config = augmentation()
        pixels, scenes, columns = frames.sample_batch(np.random.default_rng(seed), 8, config)
        assert pixels.shape == (8, 3, 100, 150) and pixels.abs().max() <= 1 and columns == (0, 150)
        for image, scene in zip(pixels, scenes, strict=True):
            flipped = scene not in frames.scenes
            plain = scene.mirror() if flipped else scene
            stored = normalise(np.array(frames.views[frames.scenes.index(plain)]))
            stored = stored.flip(-1) if flipped else stored
            correlation = np.corrcoef(stored.flatten(), image.flatten())[0, 1]
            assert correlation > 0.9
            mirrored += flipped
    assert 20 < mirrored < 60


def test_cropped_batch_shows_the_centre(frames):
    """The batch has the columns of the grader's CLIP crop, the targets of their cells, and the whole views' scenes."""
    pixels, scenes, columns = frames.sample_batch(np.random.default_rng(0), 4, augmentation(center_crop_prob=1))
    targets = build_targets(scenes, *columns)
    assert pixels.shape == (4, 3, 100, 100) and columns == (25, 100)
    assert targets["kart"].shape == (4, 13, 13) and targets["total"].tolist() == [len(s.karts) for s in scenes]


def test_hardness_weight_favours_crowded_views(frames):
    """The tiny split's 9 views hold three karts (3 of them), two (3), one (2) or none (1): weights 7, 4, 1, 1."""
    shares = []
    for hardness_weight in (0.0, 3.0):
        config = augmentation(hardness_weight)
        _, scenes, _ = frames.sample_batch(np.random.default_rng(0), 400, config)
        shares.append(np.mean([len(scene.karts) > 1 for scene in scenes]))
    assert shares[0] == pytest.approx(6 / 9, abs=0.08) and shares[1] == pytest.approx(33 / 36, abs=0.06)


def test_duplicates_weigh_as_their_square_root(tiny_data):
    """Four duplicates are drawn as often as two unique frames; splits are drawn equally often."""
    stand_still(tiny_data / "train", 4)
    frames = PretrainDataset(tiny_data, {"train": 1.0, "valid": 1.0})
    probs = dict.fromkeys(("repeated", "train", "valid"), 0.0)
    for file, prob in zip(frames.files, frames.probs, strict=True):
        repeated = file.startswith(("train/00000", "train/000b"))
        probs["repeated" if repeated else file.split("/")[0]] += prob
    # the two other frames of train are unique
    assert probs["repeated"] == pytest.approx(2 / 4) and probs["train"] == pytest.approx(2 / 4)
    assert probs["valid"] == pytest.approx(1)


def test_held_out_states_leave_no_duplicates_in_training(tiny_data):
    """All duplicates of a held-out game state are held out."""
    stand_still(tiny_data / "train", 4)
    trained = PretrainDataset(tiny_data, {"train": 1.0}, lambda state: state > 0)
    held_out = PretrainDataset(tiny_data, {"train": 1.0}, lambda state: state == 0)
    assert len(held_out) == 4 * 3 and len(trained) == 2 * 3
    assert not {file.split("_")[0] for file in trained.files} & {file.split("_")[0] for file in held_out.files}


def test_several_splits_are_concatenated(tiny_data, frames):
    both = PretrainDataset(tiny_data, {"train": 1.0, "valid": 1.0})
    alone = PretrainDataset(tiny_data, {"valid": 1.0})
    assert both.files == frames.files + alone.files
    assert all(np.array_equal(both.views[len(frames) + i], view) for i, view in enumerate(alone.views))


def test_each_kart_is_a_source_equally_often(frames):
    """Sources are balanced by kart, since some karts are in one split alone."""
    frames.scenes = [AnnotatedScene("abyss", (Kart(0, name, (60, 40, 90, 70)),)) for name in ["tux"] * 8 + ["gnu"]]
    frames.sources, frames.probs = np.arange(9), np.full(9, 1 / 9)
    frames.source_probs = _balance_classes([scene.ego.name for scene in frames.scenes], frames.probs)
    sources = frames._sample_sources(np.random.default_rng(0), 200).ravel()
    assert 0.4 < np.mean(sources == 8) < 0.6 and len(set(sources)) == 9
