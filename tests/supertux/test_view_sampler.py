"""Moments with the wanted number of visible karts are taken, others let go, but not for ever."""

import numpy as np
import pytest

from supertux.render.planner import OFFICIAL_MIX
from supertux.render.view_sampler import PATIENCE, Mix, visible_karts


def off(drawn: np.ndarray, wanted) -> float:
    """How far two histograms are apart, 0 to 2."""
    return np.abs(drawn / drawn.sum() - np.asarray(wanted) / np.sum(wanted)).sum()


@pytest.mark.parametrize("wanted", [OFFICIAL_MIX, (1, 1, 1), (10, 60, 30)], ids=["official", "even", "twos"])
def test_choosing_comes_closer_to_the_mix_than_taking_all(wanted):
    rng = np.random.default_rng(1)
    chosen, all_of_them, taken = Mix(wanted), Mix(wanted), 0
    while taken < 200:
        # now the field is close together, now it is spread
        counts = 1 + rng.binomial(7, rng.uniform(0, 0.6), size=8)
        all_of_them.add(counts)
        if chosen.takes(counts):
            chosen.add(counts)
            taken += 1
    assert off(chosen.drawn, wanted) < 0.5 * off(all_of_them.drawn, wanted)


def test_after_some_patience_any_moment_is_taken():
    mix = Mix((1, 0))
    mix.add(np.array([1] * 8))
    crowd = np.array([2] * 8)
    for _ in range(2):  # and then the patience is as long as before
        assert [mix.takes(crowd) for _ in range(PATIENCE)] == [False] * PATIENCE
        assert mix.takes(crowd)


def test_the_first_moment_and_one_that_helps_are_taken_at_once():
    mix = Mix((50, 50))
    assert mix.takes(np.array([2, 2, 1]))
    mix.add(np.array([2, 2, 1]))
    assert not mix.takes(np.array([2, 2, 2]))
    assert mix.takes(np.array([1, 1]))


def test_what_a_drawn_view_counts_as():
    mix = Mix((1, 1, 1))
    mix.add(np.array([0, 0, 1, 3, 7]))  # a view without karts has no place in the mix; 3 stands for 3 and more
    assert mix.drawn.tolist() == [1, 0, 2]


FORWARD, BACKWARD = (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)  # the engine's quaternions, along z and against it


def test_karts_ahead_and_near_are_visible():
    locations = np.array([[0.0, 0, 0], [0, 0, 8], [0, 0, -20], [50, 0, 5]])
    # the first sees the second; what is behind, 20 m ahead, or 50 m aside, is not seen
    assert visible_karts(locations, [FORWARD] * 4).tolist() == [2, 1, 1, 1]
    assert visible_karts(locations, [BACKWARD] * 4).tolist() == [1, 2, 1, 1]


def test_the_view_is_wider_than_high_and_ends_at_its_sides():
    seen = [visible_karts(np.array([[0.0, 0, 0], [x, 0, 8]]), [FORWARD] * 2)[0] for x in (-15, -9, 9, 15)]
    assert seen == [1, 2, 2, 1]


def test_a_kart_right_before_the_camera_is_cut_off_and_not_counted():
    assert visible_karts(np.array([[0.0, 0, 0], [0.2, 0, -3.0]]), [FORWARD] * 2).tolist() == [1, 2]


def test_a_kart_alone_sees_itself():
    assert visible_karts(np.array([[3.0, 1, 2]]), [FORWARD]).tolist() == [1]


def test_a_moment_without_guesses_is_taken():
    mix = Mix((60, 40))
    mix.add(np.array([1, 2]))
    assert all(mix.takes(np.zeros(0, int)) for _ in range(3))
