"""The game's engine: races that are driven, or whose karts are put in their places, and what their cameras see.

Importing this module loads the engine; a process that draws also needs `art.environment`.
"""

from collections.abc import Iterator

import numpy as np
import pystk2

from homework.labels.scene import KART_CLASS

from ...planner import RacePlan
from ...view_sampler import visible_karts
from .cameras import look_back
from .determinism import control_engine
from .labels import Depth, Moment, UnreadableError, View, boxes, decode, half_turn, instances, project

DRAWN_SIZE = (300, 200)
STEP = 0.1  # seconds of the race
COUNTDOWN_STEPS = 200  # at most, until the race's clock runs
BEGIN = (40, 150)  # steps into the race before the first moment: karts are at speed after 4 s
STEPS_BETWEEN_MOMENTS = (5, 10)
MAX_MOMENTS = 4000
# Karts put on the track: the gaps between them (metres, on average) where they stay and where they drive on from,
# how far from the road's middle (share of its width), how askew (radians), how high above it, and the steps in which
# they fall to it and the camera follows.
GAP_PLACED, GAP_DRIVEN = 14.0, 25.0
ASIDE, ASKEW, ABOVE, SETTLING_STEPS = 0.35, 0.12, 0.4, 5
# The classes of the course's data that the engine tells: pickups, nitro, and what one should not drive over.
ITEM_CLASS = {"BONUS_BOX": 4, "EASTER_EGG": 4, "NITRO_BIG": 5, "NITRO_SMALL": 5, "BANANA": 6, "BUBBLEGUM": 6}
FINISH_METRES = 200  # half of the placed frames begin here, behind the start


class Race:
    """A race of the engine: drive it, draw it."""

    def __init__(self, plan: RacePlan, size: tuple[int, int] = DRAWN_SIZE, cameras: int | None = None):
        self.clock = control_engine(plan.seed)
        pystk2.init(graphics(plan, size))
        self.plan = plan
        self.count = len(plan.karts)
        self.cameras = cameras or plan.cameras
        self.race = pystk2.Race(_config(plan, self.cameras))
        self.race.start()
        self.state = pystk2.WorldState()
        self.road = Road()

    def start(self) -> None:
        """Let the countdown pass."""
        for _ in range(COUNTDOWN_STEPS // 5):
            if not self.step(5) or self.state.time > 0.2:
                return

    def step(self, steps: int) -> bool:
        """Drive `steps` times STEP seconds, and read the state; False when the race is over."""
        going = True
        for _ in range(steps):
            self.clock.advance(STEP)
            going &= self.race.step()
        self.state.update()
        self.karts = sorted(self.state.karts, key=lambda kart: kart.id)
        return going

    def moments(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Moments that might be drawn, as guesses of the karts that each kart's camera sees: [karts].

        Going on to the next is all that it takes to leave one out; `arrive` before drawing.
        """
        if not self.plan.placed:
            # from the start the drivers stay in one bunch for a lap, from places along the road each is soon alone
            if rng.random() < 0.5:
                self.put(*self.road.places(self.count, GAP_DRIVEN, rng))
            self.step(int(rng.integers(*BEGIN)))
        for _ in range(MAX_MOMENTS):
            if self.plan.placed:
                self.wanted = self.road.places(self.count, GAP_PLACED, rng)
                yield visible_karts(self.wanted[0], [half_turn(rotation) for rotation in self.wanted[1]])
            elif self.step(int(rng.integers(*STEPS_BETWEEN_MOMENTS, endpoint=True))):
                yield visible_karts(np.array([k.location for k in self.karts]), [k.rotation for k in self.karts])
            else:
                return

    def arrive(self) -> None:
        """Bring the karts to where the current moment has them."""
        if self.plan.placed:
            self.put(*self.wanted)
            look_back()
            self.step(SETTLING_STEPS)

    def put(self, locations: np.ndarray, rope_cos_sin: list) -> None:
        """Put the karts at locations [karts, 3] with the engine's quaternions."""
        for kart, (location, (w, x, y, z)) in enumerate(zip(locations, rope_cos_sin, strict=True)):
            # here the engine takes the true rotation, in the order x, y, z, w; see `labels.rotation_matrix`
            self.state.set_kart_location(kart, location.tolist(), [-x, -y, -z, w])

    @property
    def followed(self) -> list[int]:
        """The kart that each camera follows: camera v the one in race position v + 1."""
        return sorted(range(self.count), key=lambda kart: self.karts[kart].position)[: self.cameras]

    @property
    def ordered_cameras(self) -> list[int]:
        """The cameras in the order of the frame's views."""
        followed = self.followed
        return sorted(range(len(followed)), key=lambda camera: followed[camera])

    def draw(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Images [h, w, 3] uint8 and depths [h, w] float32 of all cameras."""
        data = self.race.render_data[: self.cameras]
        return [np.array(view.image) for view in data], [np.array(view.depth) for view in data]

    def read(self, drawn: tuple[list[np.ndarray], list[np.ndarray]]) -> Moment:
        """What was drawn, with its boxes.

        As in the course's data, view i follows kart i: the karts with a camera come first.

        Raises:
            UnreadableError: no matrix, or a camera that is not at the kart it should follow.
        """
        images, decoded = drawn[0], [decode(depth) for depth in drawn[1]]
        followed = self.followed
        if not all(view.is_whole for view in decoded):
            raise UnreadableError("labels")
        locations = np.array([kart.location for kart in self.karts])
        for view, kart in zip(decoded, followed, strict=True):
            cost = _off_camera(project(view.matrix, locations))
            if cost[kart] > cost.min() + 0.5:
                raise UnreadableError("camera")
        order = sorted(followed) + [kart for kart in range(self.count) if kart not in followed]
        new = {kart: i for i, kart in enumerate(order)}
        views = []
        for camera in self.ordered_cameras:
            view = decoded[camera]
            views.append(View(images[camera], self._detections(view, new), view.distance))
        return Moment(order, [self.karts[kart] for kart in order], views)

    def _detections(self, view: Depth, new: dict[int, int]) -> list[list[int]]:
        """The rows of a view; `new`: a kart's number in the race's plan -> in the file."""
        items = [item for item in self.state.items if item.type.name in ITEM_CLASS]
        found = boxes(instances(view, self.karts, items), range(1, self.count + len(items) + 1))
        rows = [[KART_CLASS, new[n - 1], *box] for n, box in found.items() if n <= self.count]
        for n, box in found.items():
            if n > self.count:
                item = items[n - self.count - 1]
                rows.append([ITEM_CLASS[item.type.name], int(item.id), *box])
        return sorted(rows)


def _off_camera(projected: np.ndarray) -> np.ndarray:
    """How little each kart looks like the followed one, 0 to 3: off the middle, or not 4.5 m away."""
    x, _, distance = projected.T
    cost = 4 * np.abs(x) + np.abs(distance - 4.5) / 3
    return np.where(distance > 0.5, np.minimum(3, cost), 3)


class Road:
    """The middle line of the track that is being raced."""

    def __init__(self):
        track = pystk2.Track()
        track.update()
        self.nodes = np.array(track.path_nodes, float)  # [n, 2, 3] metres: begin and end of each piece
        self.widths = np.array(track.path_width, float).reshape(-1)
        self.distances = np.array(track.path_distance, float)  # [n, 2] metres from the start
        self.length = float(track.length)

    def places(self, count: int, gap: float, rng: np.random.Generator) -> tuple[np.ndarray, list]:
        """Locations [count, 3] and rotations (the engine's quaternions) of karts along a stretch of the road."""
        begin = rng.uniform(0, FINISH_METRES if rng.random() < 0.5 else self.length)
        along = begin + np.cumsum(rng.exponential(gap, count))
        locations, rope_cos_sin = [], []
        for distance in rng.permutation(along) % self.length:
            inside = (self.distances[:, 0] <= distance) & (distance < self.distances[:, 1])
            piece = int(np.argmax(inside)) if inside.any() else 0
            first, last = self.nodes[piece]
            share = (distance - self.distances[piece, 0]) / max(1e-6, np.ptp(self.distances[piece]))
            direction = (last - first) / max(1e-6, np.linalg.norm(last - first))
            sideways = np.array([direction[2], 0, -direction[0]])
            place = first + np.clip(share, 0, 1) * (last - first)
            place = place + sideways * self.widths[piece] * rng.uniform(-ASIDE, ASIDE) + [0, ABOVE, 0]
            heading = np.arctan2(direction[0], direction[2]) + rng.uniform(-ASKEW, ASKEW)
            locations.append(place)
            rope_cos_sin.append((np.cos(heading / 2), 0.0, -np.sin(heading / 2), 0.0))
        return np.array(locations), rope_cos_sin


def graphics(plan: RacePlan, size: tuple[int, int]):
    """The engine's settings for a preset of `plans.PRESETS`.

    Off in all: `display`, which draws every step of the physics as well; texture compression, which only costs time;
    ambient occlusion and depth of field, whose shaders of release 1.4 the engine doesn't fill; glow, which paints the
    items black. And where karts are put from one place to another, particles, which would follow them through the air.
    """
    config = getattr(pystk2.GraphicsConfig, plan.preset)()
    config.screen_width, config.screen_height = size
    config.display = config.texture_compression = config.ssao = config.dof = config.glow = False
    if plan.placed:
        config.particles_effects = 0
    return config


def _config(plan: RacePlan, cameras: int):
    config = pystk2.RaceConfig()
    config.track, config.num_kart, config.laps = plan.track, len(plan.karts), 20
    config.step_size, config.overlay = STEP, False
    config.seed, config.difficulty, config.num_cameras = plan.seed, plan.difficulty, cameras
    config.players.clear()
    player = pystk2.PlayerConfig
    for i, kart in enumerate(plan.karts):
        mode = player.CameraMode.ON if i < cameras else player.CameraMode.OFF
        # a kart under a player's control stands still, since nobody gives it an action
        driver = player.Controller.PLAYER_CONTROL if plan.placed else player.Controller.AI_CONTROL
        config.players.append(player(kart=kart, controller=driver, camera_mode=mode))
    return config
