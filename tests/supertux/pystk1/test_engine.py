"""Races in the legacy engine: which states are drawn, on a stand-in; a slow test uses the engine itself."""

import json
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from homework.labels.frame_info import read_frame_info
from homework.labels.scene import build_scene
from homework.utils.io import read_json
from supertux.render.planner import KARTS, RacePlan, race_plans
from supertux.render.renderer import draw_race
from supertux.render.worker import run_race
from tests.supertux.installed import skip_unless_installed

NUM_KARTS = 10  # in each race
LAP_S = 40.0  # of the stand-in's first kart; each other one takes two more
SHIFT = 24


class Drawn(SimpleNamespace):
    """A race of the stand-in: karts along a road, a box in the centre of each view."""

    races: list = []

    def __init__(self, config):
        super().__init__(config=config, seconds=0.0, stopped=False)
        Drawn.races.append(self)

    def start(self):
        assert all(other.stopped for other in Drawn.races[:-1])  # the engine runs one at a time

    def stop(self):
        self.stopped = True

    def step(self):
        self.seconds += 0.1

    @property
    def render_data(self):
        label = np.full((200, 300), 3 << SHIFT, np.uint32)  # surroundings
        label[190:200, 0:20] = (5 << SHIFT) + 7  # nitro
        views = []
        for number in range(len(self.config.players)):
            own = label.copy()
            own[90:120, 140:170] = (1 << SHIFT) + number
            views.append(SimpleNamespace(image=np.zeros((200, 300, 3), np.uint8), instance=own))
        return views


class State:
    """The part of the world's state that is read."""

    def update(self):
        drawn = Drawn.races[-1]
        self.time = drawn.seconds
        self.karts = []
        for number in range(len(drawn.config.players)):
            done = drawn.seconds >= LAP_S + 2 * number
            place = (0.0, 0.0, min(drawn.seconds, LAP_S) * 20 - 5 * number)
            kart = SimpleNamespace(finished_laps=1 if done else 0, location=place, rotation=(0.0, 0.0, 0.0, 1.0))
            kart.velocity, kart.distance_down_track = (0.0, 0.0, 20.0), place[2]
            self.karts.append(kart)


@pytest.fixture
def engine(monkeypatch):
    """Return `supertux.render.engines.pystk1.engine` on the stand-in."""
    fake = ModuleType("pystk")
    fake.__file__, fake.object_type_shift, fake.init = None, SHIFT, lambda config: None
    fake.GraphicsConfig = SimpleNamespace(hd=SimpleNamespace)
    fake.RaceConfig = lambda: SimpleNamespace(players=[])
    fake.PlayerConfig = lambda kart, controller: kart
    fake.PlayerConfig.Controller = SimpleNamespace(AI_CONTROL="ai")
    fake.Race, fake.WorldState = Drawn, State
    monkeypatch.setitem(sys.modules, "pystk", fake)
    monkeypatch.delitem(sys.modules, "supertux.render.engines.pystk1.engine", raising=False)
    import supertux.render.engines.pystk1.engine as module

    monkeypatch.setattr(module.Race, "_step_physics", lambda self: self.race.step())
    monkeypatch.setattr(module.Race, "settle_cameras", lambda self: self.drive(1.2))
    Drawn.races = []
    yield module
    sys.modules.pop("supertux.render.engines.pystk1.engine")


def plan(frames: int = 8, karts=KARTS) -> RacePlan:
    return next(race_plans(3, frames, ["abyss"], list(karts), "course"))


def test_a_race_is_drawn_on_its_way_at_the_finish_and_after_its_end(engine):
    drawn = engine.Race(plan())
    shown = []
    for counts in islice(drawn.candidates(np.random.default_rng(0)), 40):
        shown.append((len(Drawn.races), drawn.num_finished, counts.size))
    first = [(finished, estimates) for race_number, finished, estimates in shown if race_number == 1]
    assert first[0] == (0, NUM_KARTS)  # under way, with an estimate for each view
    *crossing, end = [finished for finished, estimates in first if not estimates]
    assert len(crossing) == len(set(crossing)) == 2 and all(0 < some < NUM_KARTS - 1 for some in crossing)
    assert end == NUM_KARTS
    assert shown[-1][0] > 1  # then the next race


def test_each_race_of_a_plan_has_ten_other_karts(engine):
    drawn = engine.Race(plan())
    list(islice(drawn.candidates(np.random.default_rng(0)), 60))
    hands = [tuple(one.config.players) for one in Drawn.races]
    assert len(hands) > 2 and len(set(hands)) == len(hands)
    assert all(len(set(hand)) == NUM_KARTS and set(hand) <= set(KARTS) for hand in hands)


def test_candidates_are_seconds_apart_and_each_race_has_one_end(engine):
    drawn = engine.Race(plan())
    times = [(len(Drawn.races), drawn.state.time) for _ in islice(drawn.candidates(np.random.default_rng(1)), 60)]
    assert len(set(times)) == len(times)
    of_second = [time for race_number, time in times if race_number == 2]
    assert len(of_second) <= 2 + LAP_S / engine.SECONDS_BETWEEN_FRAMES[0] + 3  # a race ends
    assert max(of_second) < LAP_S + 2 * NUM_KARTS + engine.AFTER_END_S + 1.0


def test_with_few_karts_all_of_them_race(engine):
    drawn = engine.Race(plan(karts=KARTS[:3]))
    list(islice(drawn.candidates(np.random.default_rng(0)), 10))
    assert len(Drawn.races) > 1 and drawn.num_cameras == 3
    assert all(sorted(one.config.players) == sorted(KARTS[:3]) for one in Drawn.races)


@pytest.mark.parametrize("few", [1, 2])
def test_one_or_two_karts_have_candidates_too(engine, few):
    drawn = engine.Race(plan(karts=KARTS[:few]))
    sizes = [counts.size for counts in islice(drawn.candidates(np.random.default_rng(0)), 10)]
    assert few in sizes and 0 in sizes  # under way, and after the end


def test_frames_have_the_courses_format(engine, tmp_path: Path):
    record = run_race(plan(), tmp_path)
    assert record["frames"] == 8 and record["views"] == 80 and not record["dropped"]
    for path in sorted(tmp_path.glob("*_info.json")):
        info = read_frame_info(path)
        assert len(info["karts"]) == len(info["detections"]) == NUM_KARTS
        for view in range(NUM_KARTS):
            assert build_scene(info, view).ego.name == info["karts"][view]  # the camera target of view v is kart v
            # boxes in pixels of 600x400, drawn at 300x200; with the nitro, without the surroundings
            assert info["detections"][view] == [(1, view, 280, 180, 339, 239), (5, 7, 0, 380, 39, 399)]
            assert (tmp_path / f"{path.name[:5]}_{view:02d}_im.jpg").exists()
    started = [one.config.players for one in Drawn.races]
    assert all(json.loads(path.read_text())["karts"] in started for path in tmp_path.glob("*_info.json"))


@pytest.mark.slow
def test_the_engine_itself_draws_the_same_race_twice(tmp_path: Path):
    skip_unless_installed("course")
    one = next(race_plans(5, 4, ["snowtuxpeak"], list(KARTS), "course"))
    infos = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / ".races").mkdir(parents=True)
        assert draw_race(one, folder)["frames"] == 4
        infos.append([read_json(path) for path in sorted(folder.glob("*_info.json"))])
    for a, b in zip(*infos, strict=True):
        assert [a[key] for key in ("karts", "location", "time")] == [b[key] for key in ("karts", "location", "time")]
        egos = [build_scene(a, view).ego for view in range(NUM_KARTS)]
        assert sum(ego is not None and ego.name == a["karts"][v] for v, ego in enumerate(egos)) >= 7
