"""Races in the legacy engine (PySuperTuxKart 1.1.2, module `pystk`), from the start to after the end.

Importing this module loads the engine, which runs on Python 3.10 at most; a process that draws also needs
`assets.environment`.
"""

import ctypes
from collections.abc import Iterator

import numpy as np
import pystk

from ...color_augment import PhotometricJitter
from ...planner import RacePlan
from ...view_sampler import estimate_kart_counts
from .. import CameraView, LabelledFrame
from ..pystk2.labels import boxes

DRAWN_SIZE = (300, 200)
STEP_S = 0.1  # of the race, by which drawing advances it
TICKS = 12  # of the physics in STEP_S
DIFFICULTY_RANGE = (1, 3)  # of the computer's drivers: with 0 they stay in one bunch
COUNTDOWN_S = 8.0  # until the karts are at speed
SECONDS_BETWEEN_FRAMES = (8.0, 30.0)
NUM_FINISH_FRAMES = 2  # per race, in which some karts have driven their lap and others have not
SETTLING_STEPS = 12  # in which the cameras follow, which they do not while only the physics advances
MAX_RACE_S = 200  # for tracks on which no one gets to the end
AFTER_END_S = 2.0  # the last kart across the line stops the race, the figures and lights move on
MAX_REJECTIONS = 2  # races begin and end, and each should be drawn more than once
OBJECT_TYPES = (1, 4, 5, 6)  # in the engine's labels: karts and items, numbered like the classes of the course's files
# Symbols of the engine's shared library, which exports its functions.
_WORLD = "_ZN5World7m_worldE"  # World* World::m_world
_UPDATE_WORLD = "_ZN5World11updateWorldEi"  # void World::updateWorld(int ticks)
_UPDATE_TIME = "_ZN11WorldStatus10updateTimeEi"  # void WorldStatus::updateTime(int ticks)
_UPDATE_GRAPHICS = "_ZN11LinearWorld14updateGraphicsEf"  # void LinearWorld::updateGraphics(float seconds)


class Race:
    """Races of one lap on a plan's track, one after another, each with some of the plan's karts; see `engines.Race`."""

    def __init__(self, plan: RacePlan):
        config = pystk.GraphicsConfig.hd()
        config.screen_width, config.screen_height = DRAWN_SIZE
        pystk.init(config)
        self.plan = plan
        self.num_cameras = plan.num_cameras
        self.max_rejections = MAX_REJECTIONS
        self.sample_jitter = PhotometricJitter.sample_sharpness
        self.library = ctypes.CDLL(pystk.__file__)
        self.race = None

    def candidates(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Drive one race after another.

        In each race some states in which a part of the karts has crossed the line, and one after its end, when all
        stand still, are drawn in any case: most of the course's frames are such. A race has one end alone, so that few
        frames are drawn of each, and many races.
        """
        while True:
            self._start_race(rng)
            while self._drive_until(1, rng.uniform(*SECONDS_BETWEEN_FRAMES)):
                yield self._estimate_kart_counts()
            # with the last but one across the line, the race may be over before the cameras are there
            some = np.arange(1, self.num_cameras - 1)
            for crossed in sorted(rng.choice(some, min(NUM_FINISH_FRAMES, len(some)), replace=False)):
                self._drive_until(crossed)
                if 0 < self.num_finished < self.num_cameras - 1:
                    yield np.zeros(0, int)
            if self.num_finished:
                self._drive_until(self.num_cameras)
                self.drive(AFTER_END_S)
                yield np.zeros(0, int)

    def _start_race(self, rng: np.random.Generator) -> None:
        """Start a race; after the end of one, its karts cannot drive any more."""
        if self.race:
            self.race.stop()
            self.race = None
        self.order = rng.permutation(len(self.plan.karts))[: self.num_cameras].tolist()
        self.race = pystk.Race(_race_config(self.plan, [self.plan.karts[kart] for kart in self.order], rng))
        self.race.start()
        self.state = pystk.WorldState()
        self.drive(COUNTDOWN_S)

    def drive(self, seconds: float) -> None:
        """Advance the physics without drawing, and read the state."""
        for _ in range(round(seconds / STEP_S)):
            self._step_physics()
        self.state.update()

    def _drive_until(self, num_finished: int, seconds: float = MAX_RACE_S) -> bool:
        """Drive until so many karts have driven their lap; return True where `seconds` have passed before."""
        begin = self.state.time
        while self.num_finished < num_finished and self.state.time < min(begin + seconds, MAX_RACE_S):
            self.drive(1.0)
        return self.num_finished < num_finished and self.state.time < MAX_RACE_S

    @property
    def num_finished(self) -> int:
        """The number of karts that have driven their lap."""
        return sum(kart.finished_laps >= 1 for kart in self.state.karts)

    def settle_cameras(self) -> None:
        """Let the cameras follow to where the karts are."""
        update = self._function(_UPDATE_GRAPHICS, ctypes.c_float)
        for _ in range(SETTLING_STEPS):
            self._step_physics()
            update(self._world, STEP_S)

    def read(self) -> LabelledFrame:
        """Advance by STEP_S, draw, and read the boxes from the labels; the target of camera v is kart v."""
        self.race.step()
        self.state.update()
        drawn = [(np.array(view.image), np.array(view.instance)) for view in self.race.render_data]
        views = [CameraView(image, _detections(label)) for image, label in drawn]
        return LabelledFrame(float(self.state.time), self.order, self.state.karts, views)

    def _estimate_kart_counts(self) -> np.ndarray:
        karts = self.state.karts
        # the engine's quaternions are x, y, z, w; for pystk2's see `labels.rotation_matrix`
        rotations = [(w, -x, -y, -z) for x, y, z, w in (kart.rotation for kart in karts)]
        return estimate_kart_counts(np.array([kart.location for kart in karts]), rotations)

    def _step_physics(self) -> None:
        """Advance the physics alone by STEP_S."""
        world, time = (self._function(name, ctypes.c_int) for name in (_UPDATE_WORLD, _UPDATE_TIME))
        for _ in range(TICKS):
            world(self._world, 1)
            time(self._world, 1)

    @property
    def _world(self) -> ctypes.c_void_p:
        return ctypes.c_void_p.in_dll(self.library, _WORLD)

    def _function(self, name: str, argument):
        function = self.library[name]
        function.argtypes, function.restype = [ctypes.c_void_p, argument], None
        return function


def _detections(label: np.ndarray) -> list[list[int]]:
    """Return the rows of a view's karts and items, as in `info.json`, from the engine's labels [h, w]."""
    shift = pystk.object_type_shift
    owner = np.where(np.isin(label >> shift, OBJECT_TYPES), label, 0)
    found = boxes(owner, np.unique(owner).tolist())
    return sorted([number >> shift, number & ((1 << shift) - 1), *box] for number, box in found.items())


def _race_config(plan: RacePlan, karts: list[str], rng: np.random.Generator):
    config = pystk.RaceConfig()
    config.track, config.num_kart, config.laps, config.step_size = plan.track, len(karts), 1, STEP_S
    config.seed, config.difficulty = int(rng.integers(1 << 30)), int(rng.integers(*DIFFICULTY_RANGE, endpoint=True))
    config.players.clear()
    for kart in karts:
        driver = pystk.PlayerConfig.Controller.AI_CONTROL
        config.players.append(pystk.PlayerConfig(kart=kart, controller=driver))
    return config
