"""nano/: what is printed of what a tower knows."""

from collections import Counter

import numpy as np
import torch

from homework.labels.scene import Kart
from pretrain.annotated_scene import Seen
from pretrain.checkpoints import VisionStage
from pretrain.dataset import Frames
from pretrain.eval_vision import (
    by_nearness,
    cells_by_size,
    ego_by_kart,
    ego_by_place,
    image_logits,
    relation_by_karts,
    stored_at,
)
from pretrain.targets import IGNORE
from tests.tiny_models import stand_still


def test_every_ego_kart_is_counted_once(frames):
    counted = ego_by_kart(image_logits(VisionStage().eval(), frames, batch=2))
    karts = Counter(scene.ego.name for scene in frames.scenes if scene.ego)
    assert {kart: views for kart, (_, views) in counted.items()} == dict(karts)
    assert all(0 <= right <= views for right, views in counted.values())


def test_every_ego_kart_is_counted_by_what_makes_it_hard(tiny_data):
    """Moments that were taken again apart from others, by size, and by whether a larger kart is there."""
    stand_still(tiny_data / "train", 4)
    frames = Frames(tiny_data, ["train"])
    places = ego_by_place(image_logits(VisionStage().eval(), frames, batch=5), frames)
    egos = [(scene, times) for scene, times in zip(frames.scenes, frames.times, strict=True) if scene.ego]
    assert sum(views for _, views in places.values()) == len(egos)
    assert set(frames.times) == {1, 4}
    for start, copies in (("taken again", 4), ("taken once", 1)):
        counted = sum(views for place, (_, views) in places.items() if place.startswith(start))
        assert counted == sum(times == copies for _, times in egos) > 0
    larger = sum(max(kart.min_side for kart in scene.karts) > scene.ego.min_side for scene, _ in egos)
    assert sum(views for place, (_, views) in places.items() if place.endswith("a larger one there")) == larger


def test_every_relation_is_counted_by_the_view_s_karts(frames):
    """One a kart beside the ego kart."""
    counted = relation_by_karts(image_logits(VisionStage().eval(), frames, batch=5), frames.scenes)
    views = Counter(len(scene.karts) for scene in frames.scenes if scene.others)
    assert {karts: asked for karts, (_, asked) in counted.items()} == {n: (n - 1) * views[n] for n in views}
    assert all(0 <= right <= asked for right, asked in counted.values())


def test_views_are_counted_by_the_karts_that_nearly_count():
    """4 pixels, or 5, before 3 or 6, counted or not; a view without an ego kart is asked for the total alone."""

    def seen_at(*sides: int) -> Seen:
        karts = [Kart(i, "tux", (0, 0, side, side + 9)) for i, side in enumerate(sides)]
        return Seen("abyss", tuple(k for k in karts if k.min_side >= 5), tuple(k for k in karts if k.min_side < 5))

    scenes = [seen_at(20, 4), seen_at(5, 3), seen_at(20, 3), seen_at(6), seen_at(20, 2), seen_at(4)]
    logits = {name: torch.eye(3)[torch.tensor([1, 2, 1, 2, 1, 2])] for name in ("ego", "total")}
    targets = {"ego": torch.tensor([1, 1, 1, 2, 1, IGNORE]), "total": torch.tensor([1, 2, 0, 0, 0, 2])}
    assert by_nearness([(logits, targets)], scenes) == {
        "ego": {"4 or 5 px": (1, 2), "3 or 6 px": (2, 2), "none of these": (1, 1)},
        "total": {"4 or 5 px": (3, 3), "3 or 6 px": (0, 2), "none of these": (0, 1)},
    }


def test_every_kart_is_counted_by_its_size(frames):
    sizes = cells_by_size(image_logits(VisionStage().eval(), frames, batch=2), frames.scenes)
    assert list(sizes) == ["5+ px", "8+ px", "12+ px", "18+ px"]
    sides = [kart.min_side for scene in frames.scenes for kart in scene.karts]
    assert sizes["18+ px"][1] == sum(side >= 18 for side in sides)
    assert sum(karts for _, karts in sizes.values()) == len(sides)


def test_stored_at_a_lower_quality_views_lose_more(frames):
    before = frames.views.copy()
    lost = [np.abs(stored_at(quality, frames.views).astype(int) - before).mean() for quality in (95, 70, 20)]
    assert 0 < lost[0] < lost[1] < lost[2]
    assert np.array_equal(frames.views, before)
