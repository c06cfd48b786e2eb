"""The plan of a split: a function of the seed, and balanced over tracks and karts."""

import json
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import pytest

from homework.utils.errors import InputError
from supertux.render.engines import PYSTK2
from supertux.render.planner import KARTS, MAX_FRAMES, TRACKS, RacePlan, race_plans

MANY = 200 * PYSTK2.frames_per_race


def plans(seed: int = 1, frames: int = MANY, tracks=TRACKS, karts=KARTS, preset: str = "sd", **options):
    return list(race_plans(seed, frames, list(tracks), list(karts), preset, **options))


def test_the_seed_fixes_the_plan():
    assert plans(seed=3) == plans(seed=3)
    different = sum(a.seed != b.seed for a, b in zip(plans(seed=3), plans(seed=4), strict=True))
    assert different > 190
    assert len({plan.seed for plan in plans()}) > 190  # nor do the races of a run repeat one another


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 1000])
def test_more_frames_begin_with_the_same_races(frames: int):
    few, many = plans(frames=frames), plans(frames=frames + 500)
    assert sum(plan.frames for plan in few) == frames
    assert few[:-1] == many[: len(few) - 1]
    assert replace(few[-1], frames=many[len(few) - 1].frames) == many[len(few) - 1]


@pytest.mark.parametrize("karts", [KARTS, KARTS[:11], KARTS[:3], KARTS[:1]], ids=len)
def test_each_track_has_each_kart_equally_often_in_simulated_and_in_static_races(karts: list[str]):
    seen = defaultdict(Counter)
    for plan in plans(tracks=TRACKS[:3], karts=karts):
        assert len(set(plan.karts)) == len(plan.karts) and set(plan.karts) <= set(karts)
        seen[plan.track, plan.is_static].update(plan.karts)
        times = [seen[plan.track, plan.is_static][kart] for kart in karts]
        assert max(times) - min(times) <= 1  # at any time: a run may stop anywhere
    assert all(min(seen["abyss", is_static].values()) > 5 for is_static in (False, True))


def test_tracks_take_turns_in_changing_order():
    order = [plan.track for plan in plans()]
    rounds = [order[i : i + len(TRACKS)] for i in range(0, len(order), len(TRACKS))]
    assert all(sorted(one) == sorted(TRACKS) for one in rounds[:-1])
    assert rounds[0] != rounds[1]


def test_simulated_and_static_races_alternate_on_each_track():
    by_track = defaultdict(list)
    for plan in plans():
        by_track[plan.track].append(plan.is_static)
    assert all(a != b for races in by_track.values() for a, b in zip(races, races[1:], strict=False))
    assert len({races[0] for races in by_track.values()}) == 2  # tracks begin with either


def test_races_have_1_to_10_karts():
    sizes = Counter(len(plan.karts) for plan in plans())
    assert set(sizes) == set(range(1, 11)) and max(sizes, key=sizes.get) == 10


def test_no_two_races_write_the_same_frame():
    frames = [frame for plan in plans(frames=1000) for frame in range(plan.first_frame, plan.first_frame + plan.frames)]
    assert frames == list(range(1000))
    last = plans(frames=MAX_FRAMES, tracks=TRACKS[:1], karts=KARTS[:1])[-1]
    assert f"{last.first_frame + last.frames - 1:05x}" == "fffff"


def test_a_given_number_of_karts_and_frames_per_race():
    dealt = plans(frames=4 * 13, tracks=["abyss"], num_karts=8, frames_per_race=13, quality=70)
    assert [(len(plan.karts), plan.frames, plan.quality) for plan in dealt] == [(8, 13, 70)] * 4
    # simulated and static races alternate, each with a deck of their own
    assert sorted(dealt[0].karts + dealt[2].karts) == sorted(dealt[1].karts + dealt[3].karts) == sorted(KARTS)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"tracks": ["abyss", "mars"]}, "--tracks: unknown name mars"),
        ({"karts": ["beastie"]}, "--karts: unknown name beastie"),
        ({"preset": "uhd"}, "--preset: unknown name uhd"),
        ({"tracks": ["abyss", "abyss"]}, "--tracks"),
        ({"karts": ["tux", "gnu", "tux"]}, "--karts"),
        ({"karts": []}, "--karts"),
        ({"frames": 0}, "--frames: cannot draw 0 frames"),
        ({"frames": -5}, "--frames"),
        ({"frames": 2_000_000}, "--frames: cannot draw 2000000 frames"),
    ],
)
def test_an_invalid_setting_names_its_flag(options: dict, flag: str):
    with pytest.raises(InputError, match=f"^{flag}") as error:
        plans(**options)
    assert "\n" not in str(error.value)


def test_a_plan_survives_serialisation():
    for plan in plans(frames=100, kart_count_mix=(60, 26.5, 8)):
        assert RacePlan(**json.loads(json.dumps(asdict(plan)))) == plan
