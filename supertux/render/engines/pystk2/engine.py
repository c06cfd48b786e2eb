"""Races in pystk2: driven by the computer (simulated), or with karts at rest in random places (static).

Importing this module loads the engine; a process that draws also needs `assets.environment`.
"""

import ctypes
from collections.abc import Iterator

import numpy as np
import pystk2

from homework.labels.scene import KART_CLASS

from ...color_augment import PhotometricJitter
from ...planner import RacePlan
from ...view_sampler import estimate_kart_counts
from .. import CameraView, LabelledFrame, UnreadableError
from .determinism import control_engine
from .labels import DecodedDepth, boxes, decode, project, segment_instances, turn_around

DRAWN_SIZE = (300, 200)
STEP_S = 0.1  # of the race
MAX_COUNTDOWN_STEPS = 200
FIRST_FRAME_STEPS = (40, 150)  # into a simulated race: karts are at speed after 4 s
STEPS_BETWEEN_FRAMES = (5, 10)
MAX_CANDIDATES = 4000
MAX_REJECTIONS, MAX_STATIC_REJECTIONS = 15, 300  # driving to the next candidate takes time, sampling places takes none
# Karts placed on the track: mean gaps between them, shares of the road's width, and steps to fall and settle.
STATIC_GAP_M, SIMULATED_GAP_M = 14.0, 25.0
MAX_LATERAL_OFFSET, MAX_YAW_RAD, DROP_HEIGHT_M, SETTLING_STEPS = 0.35, 0.12, 0.4, 5
FINISH_STRETCH_M = 200  # half of the static frames begin here, behind the line
MIN_CAMERA_DEPTH_M, CAMERA_DEPTH_M = 0.5, 4.5  # of a camera's target
# There is no setting for reverse cameras, but the engine's library exports its own functions. The game looks back from
# ahead of a kart while its player asks for it, and in the legacy engine from the end of the race on.
REVERSE_MODE = 2  # of the engine's `Camera::Mode`, as in pystk2.Camera.Mode
_ALL_CAMERAS = "_ZN6Camera13m_all_camerasE"  # std::vector<Camera*> Camera::m_all_cameras
_SET_MODE = "_ZN6Camera7setModeENS_4ModeE"  # void Camera::setMode(Camera::Mode)
# Classes of the course's data that the engine has: pickups, nitro, and obstacles.
ITEM_CLASS = {"BONUS_BOX": 4, "EASTER_EGG": 4, "NITRO_BIG": 5, "NITRO_SMALL": 5, "BANANA": 6, "BUBBLEGUM": 6}


class Race:
    """A plan's race; see `engines.Race`."""

    def __init__(self, plan: RacePlan, size: tuple[int, int] = DRAWN_SIZE, num_cameras: int | None = None):
        self.clock = control_engine(plan.seed)
        pystk2.init(_graphics_config(plan, size))
        self.plan = plan
        self.num_karts = len(plan.karts)
        self.num_cameras = num_cameras or plan.num_cameras
        self.max_rejections = MAX_STATIC_REJECTIONS if plan.is_static else MAX_REJECTIONS
        self.sample_jitter = PhotometricJitter.sample
        self.race = pystk2.Race(_race_config(plan, self.num_cameras))
        self.race.start()
        self.state = pystk2.WorldState()
        self.road = Road()
        for _ in range(MAX_COUNTDOWN_STEPS // 5):
            if not self.step(5) or self.state.time > 0.2:
                break

    def step(self, steps: int) -> bool:
        """Advance the race by `steps` times STEP_S and read its state; return False when it is over."""
        running = True
        for _ in range(steps):
            self.clock.now += int(STEP_S * 1e9)
            running &= self.race.step()
        self.state.update()
        self.karts = sorted(self.state.karts, key=lambda kart: kart.id)
        return running

    def candidates(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Drive on, or sample other places, for each candidate."""
        if not self.plan.is_static:
            # from the start the drivers stay in one bunch for a lap, from places along the road each is soon alone
            if rng.random() < 0.5:
                self.place_karts(*self.road.sample_places(self.num_karts, SIMULATED_GAP_M, rng))
            self.step(int(rng.integers(*FIRST_FRAME_STEPS)))
        for _ in range(MAX_CANDIDATES):
            if self.plan.is_static:
                self.places = self.road.sample_places(self.num_karts, STATIC_GAP_M, rng)
                yield estimate_kart_counts(self.places[0], [turn_around(rotation) for rotation in self.places[1]])
            elif self.step(int(rng.integers(*STEPS_BETWEEN_FRAMES, endpoint=True))):
                karts = self.karts
                yield estimate_kart_counts(np.array([k.location for k in karts]), [k.rotation for k in karts])
            else:
                return

    def settle_cameras(self) -> None:
        """Place the karts of a static race, and turn the cameras to their fronts."""
        if self.plan.is_static:
            self.place_karts(*self.places)
            _set_reverse_cameras()
            self.step(SETTLING_STEPS)

    def place_karts(self, locations: np.ndarray, rotations: list) -> None:
        """Place the karts at locations [karts, 3], with the engine's quaternions."""
        for kart, (location, (w, x, y, z)) in enumerate(zip(locations, rotations, strict=True)):
            # here the engine takes the true rotation, in the order x, y, z, w; see `labels.rotation_matrix`
            self.state.set_kart_location(kart, location.tolist(), [-x, -y, -z, w])

    @property
    def camera_targets(self) -> list[int]:
        """Each camera's target: of camera v the kart in race position v + 1."""
        return sorted(range(self.num_karts), key=lambda kart: self.karts[kart].position)[: self.num_cameras]

    def draw(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the images [h, w, 3] uint8 and depths [h, w] float32 of all cameras."""
        data = self.race.render_data[: self.num_cameras]
        return [np.array(view.image) for view in data], [np.array(view.depth) for view in data]

    def read(self) -> LabelledFrame:
        """Draw, and read the boxes from the depths; the karts with a camera come first, as in the course's data.

        Raises:
            UnreadableError: a view has no matrix, or a camera is not at its target.
        """
        images, depths = self.draw()
        decoded = [decode(depth) for depth in depths]
        targets = self.camera_targets
        if not all(view.has_matrix for view in decoded):
            raise UnreadableError("labels")
        locations = np.array([kart.location for kart in self.karts])
        for view, kart in zip(decoded, targets, strict=True):
            deviation = _deviation_from_target(project(view.matrix, locations))
            if deviation[kart] > deviation.min() + 0.5:
                raise UnreadableError("camera")
        order = sorted(targets) + [kart for kart in range(self.num_karts) if kart not in targets]
        new = {kart: i for i, kart in enumerate(order)}
        views = [CameraView(images[camera], self._detections(decoded[camera], new)) for camera in np.argsort(targets)]
        return LabelledFrame(float(self.state.time), order, [self.karts[kart] for kart in order], views)

    def _detections(self, view: DecodedDepth, new: dict[int, int]) -> list[list[int]]:
        """Return the rows of a view; `new` maps a kart's number in the plan to that in the file."""
        items = [item for item in self.state.items if item.type.name in ITEM_CLASS]
        rows, owner = [], segment_instances(view, self.karts, items)
        for n, box in boxes(owner, range(1, self.num_karts + len(items) + 1)).items():
            if n <= self.num_karts:
                rows.append([KART_CLASS, new[n - 1], *box])
            else:
                item = items[n - self.num_karts - 1]
                rows.append([ITEM_CLASS[item.type.name], int(item.id), *box])
        return sorted(rows)


def _set_reverse_cameras() -> None:
    """Show the targets of all cameras from the front, from the next step on."""
    library = ctypes.CDLL(pystk2.__file__)
    set_mode = library[_SET_MODE]
    set_mode.argtypes, set_mode.restype = [ctypes.c_void_p, ctypes.c_int], None
    begin, end = (ctypes.c_uint64 * 2).in_dll(library, _ALL_CAMERAS)  # a vector begins with these pointers
    for address in range(begin, end, ctypes.sizeof(ctypes.c_void_p)):
        set_mode(ctypes.c_uint64.from_address(address).value, REVERSE_MODE)


def _deviation_from_target(projected: np.ndarray) -> np.ndarray:
    """Return how far each kart is from where a camera's target is, 0 to 3: off the centre, or not 4.5 m away."""
    x, _, distance = projected.T
    deviation = 4 * np.abs(x) + np.abs(distance - CAMERA_DEPTH_M) / 3
    return np.where(distance > MIN_CAMERA_DEPTH_M, np.minimum(3, deviation), 3)


class Road:
    """The centre line of the current track."""

    def __init__(self):
        track = pystk2.Track()
        track.update()
        self.nodes = np.array(track.path_nodes, float)  # [n, 2, 3] metres: begin and end of each piece
        self.widths = np.array(track.path_width, float).reshape(-1)
        self.distances = np.array(track.path_distance, float)  # [n, 2] metres from the start
        self.length = float(track.length)

    def sample_places(self, count: int, gap: float, rng: np.random.Generator) -> tuple[np.ndarray, list]:
        """Sample locations [count, 3] and rotations (the engine's quaternions) of karts along a stretch of the road."""
        begin = rng.uniform(0, FINISH_STRETCH_M if rng.random() < 0.5 else self.length)
        along = begin + np.cumsum(rng.exponential(gap, count))
        locations, rotations = [], []
        for distance in rng.permutation(along) % self.length:
            inside = (self.distances[:, 0] <= distance) & (distance < self.distances[:, 1])
            piece = int(np.argmax(inside))
            first, last = self.nodes[piece]
            share = (distance - self.distances[piece, 0]) / max(1e-6, np.ptp(self.distances[piece]))
            direction = (last - first) / max(1e-6, np.linalg.norm(last - first))
            sideways = np.array([direction[2], 0, -direction[0]])
            place = first + np.clip(share, 0, 1) * (last - first)
            offset = self.widths[piece] * rng.uniform(-MAX_LATERAL_OFFSET, MAX_LATERAL_OFFSET)
            locations.append(place + sideways * offset + [0, DROP_HEIGHT_M, 0])
            heading = np.arctan2(direction[0], direction[2]) + rng.uniform(-MAX_YAW_RAD, MAX_YAW_RAD)
            rotations.append((np.cos(heading / 2), 0.0, -np.sin(heading / 2), 0.0))
        return np.array(locations), rotations


def _graphics_config(plan: RacePlan, size: tuple[int, int]):
    """Return the engine's settings for a preset.

    Off in all: `display`, which draws every step of the physics as well; texture compression, which only costs time;
    ambient occlusion and depth of field, whose shaders of release 1.4 the engine does not feed; glow, which paints the
    items black. And in static races particles, which would follow the karts from place to place.
    """
    config = getattr(pystk2.GraphicsConfig, plan.preset)()
    config.screen_width, config.screen_height = size
    config.display = config.texture_compression = config.ssao = config.dof = config.glow = False
    if plan.is_static:
        config.particles_effects = 0
    return config


def _race_config(plan: RacePlan, num_cameras: int):
    config = pystk2.RaceConfig()
    config.track, config.num_kart, config.laps = plan.track, len(plan.karts), 20
    config.step_size, config.overlay = STEP_S, False
    config.seed, config.difficulty, config.num_cameras = plan.seed, plan.difficulty, num_cameras
    config.players.clear()
    player = pystk2.PlayerConfig
    for i, kart in enumerate(plan.karts):
        mode = player.CameraMode.ON if i < num_cameras else player.CameraMode.OFF
        # a kart under a player's control stands still, since nobody gives it an action
        driver = player.Controller.PLAYER_CONTROL if plan.is_static else player.Controller.AI_CONTROL
        config.players.append(player(kart=kart, controller=driver, camera_mode=mode))
    return config
