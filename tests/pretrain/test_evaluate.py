"""Test what `eval` measures: question types, totals by karts, karts by size and by what hides them."""

import numpy as np
import pytest
import torch

from homework.labels.scene import Kart, Scene
from pretrain.dataset import PretrainDataset
from pretrain.evaluate import covered_share, evaluate_views, format_report, limit_rows
from pretrain.targets import KART_ID, KARTS, MAX_COUNT, TRACKS
from tests.tiny_models import stand_still


def oracle(views: PretrainDataset, missed: str = ""):
    """Predict the truth, but that a kart is in no view."""
    served = iter(range(len(views)))

    def predict(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        _, targets = views.get_batch(np.array([next(served) for _ in range(len(pixels))]))
        sizes = {"ego": len(KARTS), "total": MAX_COUNT + 1, "track": len(TRACKS), "count": MAX_COUNT + 1}
        logits = {k: torch.nn.functional.one_hot(targets[k].clamp(min=0), n).float() for k, n in sizes.items()}
        relation = targets["relation"].float()
        if missed:
            relation[:, KART_ID[missed], 0] = -1
        return logits | {"relation": torch.where(relation > 0, 1.0, -1.0)}

    return predict


def test_the_truth_has_no_errors(frames):
    """All types and limits are right; each moment and kind of kart is counted."""
    result = evaluate_views(oracle(frames), frames)
    assert all(one == (1.0, 1.0, 1.0) for one, _ in result.values())
    assert list(result) == [
        *("ego", "total", "track", "relation", "count", "mean"),
        *("total of 1 kart", "total of 2 karts", "total of 3 karts"),
        *("found, 12 to 19 pixels", "found, 20 or more pixels"),
    ]
    assert result["total of 3 karts"][1] == 3 and result["total of 1 kart"][1] == 2
    assert len(format_report(result)) == 1 + len(result)


def test_duplicates_count_once(tiny_data):
    """A kart that is missed in one of three moments is a third of the result, however often the moment is repeated."""
    stand_still(tiny_data / "train", 4)
    views = PretrainDataset(tiny_data, {"train": 1.0})
    missed = next(
        scene.others[0].name for file, scene in zip(views.files, views.scenes, strict=True) if "00000_00" in file
    )
    kinds = [
        (moment, label[1], kart.name == missed)
        for moment, label, scene in zip(views.moments, views.labels, views.scenes, strict=True)
        for kart in scene.others
        if 12 <= kart.min_side < 20
    ]
    expected = 1 - np.mean([is_missed for *_, is_missed in set(kinds)])
    assert len(kinds) > len(set(kinds)) and 0 < expected < 1
    one, moments = evaluate_views(oracle(views, missed), views)["found, 12 to 19 pixels"]
    assert one.value == pytest.approx(expected) and one.low < expected < one.high and moments == 3


def test_limits_are_by_size_and_cover():
    """Sizes are of the shorter side; a kart counts as covered if another's box has half of its own."""
    boxes = {"tux": (60, 40, 90, 70), "gnu": (70, 36, 80, 46), "xue": (0, 0, 7, 30), "kiki": (100, 0, 120, 25)}
    scene = Scene("abyss", tuple(Kart(i, name, box) for i, (name, box) in enumerate(boxes.items())))
    assert [round(covered_share(kart, scene), 2) for kart in scene.karts] == [0.07, 0.6, 0, 0]
    logits = {"total": torch.eye(10)[4], "relation": torch.full((len(KARTS), 3), -1.0)}
    logits["relation"][KART_ID["gnu"], 0] = 1
    assert sorted(limit_rows(logits, scene)) == [
        ("found, 20 or more pixels", 0.0),
        ("found, 5 to 7 pixels", 0.0),
        ("found, 8 to 11 pixels", 1.0),
        ("found, half or more covered", 1.0),
        ("total of 4 karts", 1.0),
    ]
