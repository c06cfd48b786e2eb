"""Intervals that allow for duplicate frames, and the moments that they show."""

import numpy as np
import pytest

from homework.labels.duplicates import MEAN, bootstrap_by_moment, moment_key, moments_of_split
from homework.utils.errors import InputError
from tests.tiny_models import stand_still


def test_each_moment_counts_once():
    """Three copies of an item that is wrong weigh as much as one that is right."""
    moments, items = ["a", "a", "a", "b", "b"], [0, 0, 0, 0, 1]
    result = bootstrap_by_moment(moments, items, ["ego"] * 5, [0, 0, 0, 1, 1])
    assert result["ego"].value == pytest.approx(2 / 3)
    assert bootstrap_by_moment(moments, range(5), ["ego"] * 5, [0, 0, 0, 1, 1])["ego"].value == pytest.approx(2 / 5)


def test_the_mean_weighs_groups_equally():
    """Whatever the number of their items."""
    result = bootstrap_by_moment("abcd", range(4), ["ego", "ego", "ego", "track"], [1, 1, 1, 0])
    assert list(result) == ["ego", "track", MEAN] and result[MEAN].value == 0.5
    assert result["ego"] == (1, 1, 1) and bootstrap_by_moment([], [], [], []) == {}


def test_intervals_are_as_wide_as_moments_are_few():
    """With 10 answers a moment that are right or wrong together, the interval is that of the moments."""
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.8
    alone = bootstrap_by_moment(range(400), [0] * 400, ["ego"] * 400, right)["ego"]
    expected = 1.96 * (right.mean() * (1 - right.mean()) / 400) ** 0.5
    assert (alone.high - alone.low) / 2 == pytest.approx(expected, rel=0.1)
    together = bootstrap_by_moment(np.repeat(range(400), 10).tolist(), range(4000), ["ego"] * 4000, right.repeat(10))[
        "ego"
    ]
    assert together.value == alone.value and together.high - together.low == pytest.approx(
        alone.high - alone.low, rel=0.1
    )


def test_copies_of_a_frame_are_one_moment(tiny_data):
    """Frames whose karts stand at the same places are; without places each frame is a moment."""
    assert len(set(moments_of_split(tiny_data / "train").values())) == 3
    stand_still(tiny_data / "train", 4)
    moments = moments_of_split(tiny_data / "train")
    assert len(moments) == 6 and len(set(moments.values())) == 3
    assert moments["train/00000"] == moments["train/000b1"] != moments["train/00001"]
    with pytest.raises(InputError, match="`distance_down_track` is missing or too short"):
        moment_key({"track": "abyss", "detections": [[]], "distance_down_track": None}, "train/00000")
