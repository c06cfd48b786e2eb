"""Accuracies of the vision encoder's heads, by class."""

from collections import Counter

import numpy as np
import torch

from homework.labels.scene import Kart
from pretrain.checkpoints import VisionStage
from pretrain.dataset import AnnotatedScene, PretrainDataset
from pretrain.eval_vision import (
    accuracy_by_threshold_distance,
    ego_accuracy_by_difficulty,
    ego_accuracy_by_kart,
    jpeg_roundtrip,
    kart_accuracy_by_size,
    predict_views,
    relation_accuracy_by_kart_count,
)
from pretrain.targets import UNKNOWN
from tests.tiny_models import stand_still


def test_every_ego_kart_is_counted_once(frames):
    counted = ego_accuracy_by_kart(predict_views(VisionStage().eval(), frames, batch_size=2))
    karts = Counter(scene.ego.name for scene in frames.scenes if scene.ego)
    assert {kart: views for kart, (_, views) in counted.items()} == dict(karts)
    assert all(0 <= correct <= views for correct, views in counted.values())


def test_every_ego_kart_is_counted_by_difficulty(tiny_data):
    """Classes combine duplicate or unique frame, size, and whether a larger kart is in the view."""
    stand_still(tiny_data / "train", 4)
    frames = PretrainDataset(tiny_data, ["train"])
    classes = ego_accuracy_by_difficulty(predict_views(VisionStage().eval(), frames, batch_size=5), frames)
    egos = [(scene, times) for scene, times in zip(frames.scenes, frames.num_duplicates, strict=True) if scene.ego]
    assert sum(views for _, views in classes.values()) == len(egos)
    assert set(frames.num_duplicates) == {1, 4}
    for start, copies in (("duplicate frame", 4), ("unique frame", 1)):
        counted = sum(views for name, (_, views) in classes.items() if name.startswith(start))
        assert counted == sum(times == copies for _, times in egos) > 0
    larger = sum(max(kart.min_side for kart in scene.karts) > scene.ego.min_side for scene, _ in egos)
    assert sum(views for name, (_, views) in classes.items() if name.endswith("with a larger kart")) == larger


def test_every_relation_is_counted_by_the_number_of_karts(frames):
    """Each kart beside the ego kart has one relation."""
    counted = relation_accuracy_by_kart_count(predict_views(VisionStage().eval(), frames, batch_size=5), frames.scenes)
    views = Counter(len(scene.karts) for scene in frames.scenes if scene.others)
    assert {karts: total for karts, (_, total) in counted.items()} == {n: (n - 1) * views[n] for n in views}
    assert all(0 <= correct <= total for correct, total in counted.values())


def test_views_are_counted_by_distance_from_the_size_threshold():
    """4 or 5 pixels come before 3 or 6, large enough or not; a view without an ego kart has a total only."""

    def scene_of_sizes(*sides: int) -> AnnotatedScene:
        karts = [Kart(i, "tux", (0, 0, side, side + 9)) for i, side in enumerate(sides)]
        return AnnotatedScene(
            "abyss", tuple(k for k in karts if k.min_side >= 5), tuple(k for k in karts if k.min_side < 5)
        )

    scenes = [
        scene_of_sizes(20, 4),
        scene_of_sizes(5, 3),
        scene_of_sizes(20, 3),
        scene_of_sizes(6),
        scene_of_sizes(20, 2),
        scene_of_sizes(4),
    ]
    logits = {name: torch.eye(3)[torch.tensor([1, 2, 1, 2, 1, 2])] for name in ("ego", "total")}
    targets = {"ego": torch.tensor([1, 1, 1, 2, 1, UNKNOWN]), "total": torch.tensor([1, 2, 0, 0, 0, 2])}
    counts = {name: accuracy_by_threshold_distance([(logits, targets)], scenes, name) for name in ("ego", "total")}
    assert counts == {
        "ego": {"4 or 5 px": (1, 2), "3 or 6 px": (2, 2), "none of these": (1, 1)},
        "total": {"4 or 5 px": (3, 3), "3 or 6 px": (0, 2), "none of these": (0, 1)},
    }


def test_every_kart_is_counted_by_its_size(frames):
    sizes = kart_accuracy_by_size(predict_views(VisionStage().eval(), frames, batch_size=2), frames.scenes)
    assert list(sizes) == ["5+ px", "8+ px", "12+ px", "18+ px"]
    sides = [kart.min_side for scene in frames.scenes for kart in scene.karts]
    assert sizes["18+ px"][1] == sum(side >= 18 for side in sides)
    assert sum(karts for _, karts in sizes.values()) == len(sides)


def test_lower_jpeg_quality_loses_more(frames):
    before = frames.views.copy()
    lost = [np.abs(jpeg_roundtrip(quality, frames.views).astype(int) - before).mean() for quality in (95, 70, 20)]
    assert 0 < lost[0] < lost[1] < lost[2]
    assert np.array_equal(frames.views, before)
