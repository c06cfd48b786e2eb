"""One race in a process of its own: `python -m supertux.race FOLDER < plan.json`.

Writes the race's frames, each whole or not at all, and last of all `.races/NNNNN.json` with what there is to know
about it. The process needs `art.environment`. It is its own since the engine can end it, and since a race drawn
after another in the same process would depend on it.
"""

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pystk2
from PIL import Image

from homework.errors import replacing, write_json
from homework.scene import KART_CLASS, VIEW_SIZE, scene

from . import labels
from .determinism import control_engine
from .look import Look
from .mix import Mix, visible_karts
from .plans import RacePlan

DRAWN_SIZE = (300, 200)
MAX_CAMERAS = 8  # more give blank images
STEP = 0.1  # seconds of the race
COUNTDOWN_STEPS = 200  # at most, until the race's clock runs
LATEST_START = 200  # steps into the race before the first moment
STEPS_BETWEEN_MOMENTS = (5, 10)
# Karts put on the track: the gaps between them (metres, on average), how far from the road's middle (share of its
# width), how askew (radians), how high above it, and the steps in which they fall to it and the camera follows.
GAP, ASIDE, ASKEW, ABOVE, SETTLING_STEPS = 14.0, 0.35, 0.12, 0.4, 5
FINISH_METRES = 200  # half of the placed frames begin here, behind the start
MAX_DROPPED = 30  # frames whose labels cannot be read, or whose cameras are not where they should be
MAX_MOMENTS = 4000
# The classes of the course's data that the engine tells: pickups, nitro, and what one should not drive over.
ITEM_CLASS = {"BONUS_BOX": 4, "EASTER_EGG": 4, "NITRO_BIG": 5, "NITRO_SMALL": 5, "BANANA": 6, "BUBBLEGUM": 6}


class Clock:
    """CPU seconds by part of the work."""

    def __init__(self):
        self.seconds = Counter()

    @contextmanager
    def part(self, name: str):
        """Count the block's time to the part `name`."""
        begin = time.process_time()
        yield
        self.seconds[name] += time.process_time() - begin


class Race:
    """A race of the engine: drive it, draw it."""

    def __init__(self, plan: RacePlan, size: tuple[int, int] = DRAWN_SIZE):
        self.clock = control_engine(plan.seed)
        pystk2.init(graphics(plan, size))
        self.plan = plan
        self.count = len(plan.karts)
        self.cameras = min(self.count, MAX_CAMERAS)
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
        """Moments that might be drawn, as guesses of the karts that each camera sees: [cameras].

        Going on to the next is all that it takes to leave one out; `arrive` before drawing.
        """
        if not self.plan.placed:
            self.step(int(rng.integers(LATEST_START)))
        for _ in range(MAX_MOMENTS):
            if self.plan.placed:
                self.wanted = self.road.places(self.count, rng)
                yield visible_karts(*self.wanted)
            elif self.step(int(rng.integers(*STEPS_BETWEEN_MOMENTS, endpoint=True))):
                yield visible_karts(np.array([k.location for k in self.karts]), [k.rotation for k in self.karts])
            else:
                return

    def arrive(self) -> None:
        """Bring the karts to where the current moment has them."""
        if self.plan.placed:
            for kart, (location, rotation) in enumerate(zip(*self.wanted, strict=True)):
                # here the engine takes the true rotation, in the order x, y, z, w; see `labels.rotation_matrix`
                w, x, y, z = rotation
                self.state.set_kart_location(kart, location.tolist(), [-x, -y, -z, w])
            self.step(SETTLING_STEPS)

    @property
    def followed(self) -> list[int]:
        """The kart that each camera follows: camera v the one in race position v + 1."""
        return sorted(range(self.count), key=lambda kart: self.karts[kart].position)[: self.cameras]

    def draw(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Images [h, w, 3] uint8 and depths [h, w] float32 of all cameras."""
        data = self.race.render_data[: self.cameras]
        return [np.array(view.image) for view in data], [np.array(view.depth) for view in data]


class Road:
    """The middle line of the track that is being raced."""

    def __init__(self):
        track = pystk2.Track()
        track.update()
        self.nodes = np.array(track.path_nodes, float)  # [n, 2, 3] metres: begin and end of each piece
        self.widths = np.array(track.path_width, float).reshape(-1)
        self.distances = np.array(track.path_distance, float)  # [n, 2] metres from the start
        self.length = float(track.length)

    def places(self, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list]:
        """Locations [count, 3] and rotations (the engine's quaternions) of karts along a stretch of the road."""
        begin = rng.uniform(0, FINISH_METRES if rng.random() < 0.5 else self.length)
        along = begin + np.cumsum(rng.exponential(GAP, count))
        locations, rotations = [], []
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
            rotations.append((np.cos(heading / 2), 0.0, -np.sin(heading / 2), 0.0))
        return np.array(locations), rotations


def graphics(plan: RacePlan, size: tuple[int, int]):
    """The engine's settings for a preset of `plans.PRESETS`.

    Off in all: `display`, which draws every step of the physics as well; texture compression, which only costs time;
    ambient occlusion and depth of field, whose shaders of release 1.4 the engine doesn't fill; glow, which paints the
    items black. And where karts are
    put from one place to another, particles, which would follow them through the air.
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


def run(plan: RacePlan, folder: Path) -> dict:
    """Draw all frames of a race into `folder`.

    Returns:
        What `.races/NNNNN.json` holds.
    """
    begin, clock = time.time(), Clock()
    rng = np.random.default_rng(plan.seed)
    mix, dropped, saved = Mix(plan.mix), Counter(), 0
    with clock.part("load"):
        race = Race(plan)
        race.start()
    moments = race.moments(rng)
    while saved < plan.frames and dropped.total() < MAX_DROPPED:
        with clock.part("physics"):
            seen = next((seen for seen in moments if mix.takes(seen)), None)
            if seen is None:
                break
            race.arrive()
        with clock.part("draw"):
            images, depths = race.draw()
        with clock.part("label"):
            views = [labels.decode(depth) for depth in depths]
            problem = problem_of(views, race)
            if problem:
                dropped[problem] += 1
                continue
            info, order = describe(plan, race, views)
        with clock.part("store"):
            look = Look.random(np.random.default_rng([plan.seed, saved]))
            ordered = [(images[v], views[v]) for v in order]
            store(folder, plan.first_frame + saved, info, ordered, look, plan.quality)
        mix.add(np.array([len(scene(info, view).karts) for view in range(len(images))]))
        saved += 1
    return {
        "race": plan.number,
        "track": plan.track,
        "karts": len(plan.karts),
        "placed": plan.placed,
        "frames": saved,
        "views": saved * race.cameras,
        "missing": plan.frames - saved,
        "dropped": dict(dropped),
        "cpu_seconds": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
        "seconds": round(time.time() - begin, 3),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def problem_of(views: list[labels.Depth], race: Race) -> str | None:
    """Why a frame cannot be used, or None: no matrix, or a camera that is not behind the kart it should follow."""
    if not all(view.is_whole for view in views):
        return "labels"
    locations = np.array([kart.location for kart in race.karts])
    for view, kart in zip(views, race.followed, strict=True):
        cost = _off_camera(labels.project(view.matrix, locations))
        if cost[kart] > cost.min() + 0.5:
            return "camera"
    return None


def _off_camera(projected: np.ndarray) -> np.ndarray:
    """How little each kart looks like the followed one, 0 to 3: off the middle, or not 4.5 m away."""
    x, _, distance = projected.T
    cost = 4 * np.abs(x) + np.abs(distance - 4.5) / 3
    return np.where(distance > 0.5, np.minimum(3, cost), 3)


def describe(plan: RacePlan, race: Race, views: list[labels.Depth]) -> tuple[dict, list[int]]:
    """The frame's `info.json`, and the cameras in the order of its views.

    As in the course's data, view i follows kart i: the karts with a camera come first.
    """
    followed = race.followed
    order = sorted(range(len(followed)), key=lambda view: followed[view])
    old = sorted(followed) + [kart for kart in range(race.count) if kart not in followed]
    new = {kart: i for i, kart in enumerate(old)}
    karts = [race.karts[kart] for kart in old]
    items = [item for item in race.state.items if item.type.name in ITEM_CLASS]
    detections = []
    for view in (views[v] for v in order):
        owner = labels.instances(view, race.karts, items)
        found = labels.boxes(owner, range(1, race.count + len(items) + 1))
        boxes = [[KART_CLASS, new[n - 1], *box] for n, box in found.items() if n <= race.count]
        for n, box in found.items():
            if n > race.count:
                item = items[n - race.count - 1]
                boxes.append([ITEM_CLASS[item.type.name], int(item.id), *box])
        detections.append(sorted(boxes))
    info = {
        "track": plan.track,
        "karts": [plan.karts[kart] for kart in old],
        "detections": detections,
        "distance_down_track": [round(float(kart.distance_down_track), 2) for kart in karts],
        "velocity": [_rounded(kart.velocity) for kart in karts],
        "location": [_rounded(kart.location) for kart in karts],
        "rotation": [_rounded(kart.rotation) for kart in karts],
        "race": plan.number,
        "time": round(float(race.state.time), 2),
    }
    return info, order


def _rounded(vector) -> list[float]:
    """A vector of the engine, to the millimetre."""
    return [round(float(x), 3) for x in vector]


def store(folder: Path, frame: int, info: dict, views: list[tuple], look: Look, quality: int) -> None:
    """Write a frame: its images first, so that an `info.json` never lacks one.

    Args:
        folder: of the split.
        frame: its number.
        info: what `describe` says.
        views: (image [h, w, 3] uint8, its decoded depth) of each view.
        look: light and air.
        quality: of the JPEG files.
    """
    name = f"{frame:05x}"
    half = (slice(None, None, DRAWN_SIZE[1] // VIEW_SIZE[1]), slice(None, None, DRAWN_SIZE[0] // VIEW_SIZE[0]))
    for number, (image, view) in enumerate(views):
        small = np.asarray(Image.fromarray(image).resize(VIEW_SIZE, Image.Resampling.BOX))
        with replacing(folder / f"{name}_{number:02d}_im.jpg") as temporary:
            look.apply(small, view.distance[half]).save(temporary, "JPEG", quality=quality)
    with replacing(folder / f"{name}_info.json") as temporary:
        temporary.write_text(json.dumps(info))


def main() -> None:
    """Draw the race whose plan comes on standard input; end without the engine's exit, which may crash."""
    folder = Path(sys.argv[1])
    plan = RacePlan.from_json(sys.stdin.read())
    try:
        write_json(folder / f".races/{plan.number:05d}.json", run(plan, folder))
        status = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
