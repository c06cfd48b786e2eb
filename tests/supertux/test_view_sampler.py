"""Rejection sampling towards a histogram, and the estimate of visible karts."""

import numpy as np
import pytest

from supertux.render.planner import COURSE_KART_COUNT_MIX
from supertux.render.view_sampler import HistogramSampler, estimate_kart_counts


def distance(histogram: np.ndarray, wanted) -> float:
    """Return the L1 distance of two histograms, 0 to 2."""
    return np.abs(histogram / histogram.sum() - np.asarray(wanted) / np.sum(wanted)).sum()


@pytest.mark.parametrize("wanted", [COURSE_KART_COUNT_MIX, (1, 1, 1), (10, 60, 30)], ids=["official", "even", "twos"])
def test_sampling_comes_closer_to_the_target_than_taking_all(wanted):
    rng = np.random.default_rng(1)
    filtered, unfiltered = HistogramSampler(wanted, 15), HistogramSampler(wanted, 15)
    taken = 0
    while taken < 200:
        # now the field is close together, now it is spread
        counts = 1 + rng.binomial(7, rng.uniform(0, 0.6), size=8)
        unfiltered.add(counts)
        if filtered.accept(counts):
            filtered.add(counts)
            taken += 1
    assert distance(filtered.histogram, wanted) < 0.5 * distance(unfiltered.histogram, wanted)


def test_after_max_rejections_any_candidate_is_accepted():
    sampler = HistogramSampler((1, 0), 15)
    sampler.add(np.array([1] * 8))
    crowd = np.array([2] * 8)
    for _ in range(2):  # the count starts again after an accepted one
        assert [sampler.accept(crowd) for _ in range(15)] == [False] * 15
        assert sampler.accept(crowd)


def test_the_first_candidate_and_one_that_helps_are_accepted_at_once():
    sampler = HistogramSampler((50, 50), 15)
    assert sampler.accept(np.array([2, 2, 1]))
    sampler.add(np.array([2, 2, 1]))
    assert not sampler.accept(np.array([2, 2, 2]))
    assert sampler.accept(np.array([1, 1]))


def test_bins_of_the_histogram():
    sampler = HistogramSampler((1, 1, 1), 15)
    sampler.add(np.array([0, 0, 1, 3, 7]))  # a view without karts has no bin; the last bin is 3 and more
    assert sampler.histogram.tolist() == [1, 0, 2]


FORWARD, BACKWARD = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)  # the engine's quaternions, along z and against it


def test_near_karts_ahead_are_visible():
    locations = np.array([[0.0, 0, 0], [0, 0, 8], [0, 0, -20], [50, 0, 5]])
    # the second is visible to the first; behind, 20 m ahead or 50 m aside, they are not
    assert estimate_kart_counts(locations, [FORWARD] * 4).tolist() == [2, 1, 1, 1]
    assert estimate_kart_counts(locations, [BACKWARD] * 4).tolist() == [1, 2, 1, 1]


def test_the_view_ends_at_its_sides():
    seen = [estimate_kart_counts(np.array([[0.0, 0, 0], [x, 0, 8]]), [FORWARD] * 2)[0] for x in (-15, -9, 9, 15)]
    assert seen == [1, 2, 2, 1]


def test_a_kart_too_close_to_the_camera_is_not_counted():
    assert estimate_kart_counts(np.array([[0.0, 0, 0], [0.2, 0, -3.0]]), [FORWARD] * 2).tolist() == [1, 2]


def test_a_single_kart_counts_itself():
    assert estimate_kart_counts(np.array([[3.0, 1, 2]]), [FORWARD]).tolist() == [1]


def test_a_candidate_without_estimates_is_accepted():
    sampler = HistogramSampler((60, 40), 15)
    sampler.add(np.array([1, 2]))
    assert all(sampler.accept(np.zeros(0, int)) for _ in range(3))
