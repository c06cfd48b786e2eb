"""Accuracies of the vision encoder's heads, by class."""

from collections import Counter

from pretrain.checkpoints import VisionStage
from pretrain.dataset import PretrainDataset
from pretrain.eval_vision import (
    ego_accuracy_by_difficulty,
    kart_accuracy_by_size,
    predict_views,
    relation_accuracy_by_kart_count,
)
from tests.tiny_models import stand_still


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


def test_every_kart_is_counted_by_its_size(frames):
    sizes = kart_accuracy_by_size(predict_views(VisionStage().eval(), frames, batch_size=2), frames.scenes)
    assert list(sizes) == ["5+ px", "8+ px", "12+ px", "18+ px"]
    sides = [kart.min_side for scene in frames.scenes for kart in scene.karts]
    assert sizes["18+ px"][1] == sum(side >= 18 for side in sides)
    assert sum(karts for _, karts in sizes.values()) == len(sides)
