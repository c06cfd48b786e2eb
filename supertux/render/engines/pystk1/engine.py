"""The engine of the course's frames (PySuperTuxKart 1.1.2, module `pystk`): races from the start to after the end.

It has the interface of `engine.Race`. Importing this module loads the engine, which runs on Python 3.10 at most; a
process that draws also needs `course_art.environment`.
"""

import ctypes
from collections.abc import Iterator

import numpy as np
import pystk

from ...planner import RacePlan
from ...view_sampler import visible_karts
from ..pystk2.labels import Moment, View, boxes

DRAWN_SIZE = (300, 200)
STEP = 0.1  # seconds of the race that the engine goes on by itself when it draws
TICKS = 12  # of the physics in STEP
DIFFICULTY = (1, 3)  # of the computer's drivers: with 0 they stay in one bunch
COUNTDOWN = 8.0  # seconds until the karts are at speed
BETWEEN = (8.0, 30.0)  # seconds between moments of driving that might be drawn
WHILE_CROSSING = 2  # moments of a race in which some karts have driven their lap, and others haven't
SETTLING_STEPS = 12  # in which the cameras follow, which they don't while only the physics goes on
MOST_SECONDS = 200  # of a race, for the tracks on which no one gets to the end
AFTER_END = 2.0  # seconds; the last kart across the line stops the race, the figures and lights move on
CLASSES = {1: 1, 4: 4, 5: 5, 6: 6}  # kinds of objects in the engine's labels -> classes of the course's files
# Of the engine's shared library, which exports its functions.
_WORLD = "_ZN5World7m_worldE"  # World* World::m_world
_UPDATE_WORLD = "_ZN5World11updateWorldEi"  # void World::updateWorld(int ticks)
_UPDATE_TIME = "_ZN11WorldStatus10updateTimeEi"  # void WorldStatus::updateTime(int ticks)
_UPDATE_GRAPHICS = "_ZN11LinearWorld14updateGraphicsEf"  # void LinearWorld::updateGraphics(float seconds)


class Race:
    """Races of one lap on a plan's track, one after another, each with some of the plan's karts."""

    def __init__(self, plan: RacePlan):
        config = pystk.GraphicsConfig.hd()
        config.screen_width, config.screen_height = DRAWN_SIZE
        pystk.init(config)
        self.plan = plan
        self.cameras = plan.cameras
        self.library = ctypes.CDLL(pystk.__file__)
        self.race = None

    def start(self) -> None:
        """Nothing: each race begins with its first moment."""

    def moments(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Moments that might be drawn, as guesses of the karts that each kart's camera sees: [karts].

        One without guesses is worth drawing in any case: in each race some in which a part of the karts has crossed the
        line, and one after its end, when all stand still, as they do in most of the course's frames. A race has one end
        alone, so that few moments are drawn of each, and many races.
        """
        while True:
            self._begin(rng)
            while self._drive_to(1, rng.uniform(*BETWEEN)):
                yield self._guess()
            # with the last but one across the line, the race may be over before the cameras are there
            some = np.arange(1, self.cameras - 1)
            for crossed in sorted(rng.choice(some, min(WHILE_CROSSING, len(some)), replace=False)):
                self._drive_to(crossed)
                if 0 < self.finished < self.cameras - 1:
                    yield np.zeros(0, int)
            if self.finished:
                self._drive_to(self.cameras)
                self.drive(AFTER_END)
                yield np.zeros(0, int)

    def _begin(self, rng: np.random.Generator) -> None:
        """Start a race; after the end of one, its karts can't drive any more."""
        if self.race:
            self.race.stop()
            self.race = None
        self.order = rng.permutation(len(self.plan.karts))[: self.cameras].tolist()
        self.race = pystk.Race(_config(self.plan, [self.plan.karts[kart] for kart in self.order], rng))
        self.race.start()
        self.state = pystk.WorldState()
        self.drive(COUNTDOWN)

    def drive(self, seconds: float) -> None:
        """Let the physics go on, without drawing, and read the state."""
        for _ in range(round(seconds / STEP)):
            self._step_unseen()
        self.state.update()

    def _drive_to(self, finished: int, seconds: float = MOST_SECONDS) -> bool:
        """Drive until so many karts have driven their lap; whether they have not when the seconds are up."""
        begin = self.state.time
        while self.finished < finished and self.state.time < min(begin + seconds, MOST_SECONDS):
            self.drive(1.0)
        return self.finished < finished and self.state.time < MOST_SECONDS

    @property
    def finished(self) -> int:
        """How many karts have driven their lap."""
        return sum(kart.finished_laps >= 1 for kart in self.state.karts)

    def arrive(self) -> None:
        """Bring the cameras to where the karts are."""
        update = self._function(_UPDATE_GRAPHICS, ctypes.c_float)
        for _ in range(SETTLING_STEPS):
            self._step_unseen()
            update(self._world, STEP)

    def draw(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Go on by a STEP; images [h, w, 3] uint8 and labels [h, w] uint32 of all cameras."""
        self.race.step()
        self.state.update()
        return [(np.array(view.image), np.array(view.instance)) for view in self.race.render_data]

    def read(self, drawn: list[tuple[np.ndarray, np.ndarray]]) -> Moment:
        """What was drawn, with its boxes; camera v follows kart v."""
        views = [View(image, _detections(label)) for image, label in drawn]
        return Moment(self.order, self.state.karts, views)

    def _guess(self) -> np.ndarray:
        karts = self.state.karts
        # the engine's quaternions are x, y, z, w; see `labels.rotation_matrix`
        turned = [(w, -x, -y, -z) for x, y, z, w in (kart.rotation for kart in karts)]
        return visible_karts(np.array([kart.location for kart in karts]), turned)

    def _step_unseen(self) -> None:
        """Go on by a STEP of the physics alone."""
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
    """The boxes of a view's karts and items, as in `info.json`, from the engine's labels [h, w]."""
    shift = pystk.object_type_shift
    owner = np.where(np.isin(label >> shift, list(CLASSES)), label, 0)
    found = boxes(owner, np.unique(owner).tolist())
    rows = [[CLASSES[number >> shift], number & ((1 << shift) - 1), *box] for number, box in found.items()]
    return sorted(rows)


def _config(plan: RacePlan, karts: list[str], rng: np.random.Generator):
    config = pystk.RaceConfig()
    config.track, config.num_kart, config.laps, config.step_size = plan.track, len(karts), 1, STEP
    config.seed, config.difficulty = int(rng.integers(1 << 30)), int(rng.integers(*DIFFICULTY, endpoint=True))
    config.players.clear()
    for kart in karts:
        driver = pystk.PlayerConfig.Controller.AI_CONTROL
        config.players.append(pystk.PlayerConfig(kart=kart, controller=driver))
    return config
