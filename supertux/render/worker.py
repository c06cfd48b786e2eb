"""One race in a process of its own: `python -m supertux.render.worker FOLDER < plan.json`.

Writes the race's frames, each whole or not at all, and last of all `.races/NNNNN.json` with what there is to know
about it. The process needs `art.environment`. It is its own since the engine can end it, and since a race drawn
after another in the same process would depend on it.
"""

import json
import resource
import sys
import time
from collections import Counter
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

from homework.labels.scene import VIEW_SIZE, build_scene
from homework.utils.io import atomic_write, write_json

from . import subprocesses as child
from .color_augment import Look
from .engines.pystk2.labels import Moment, UnreadableError, View
from .planner import COURSE, RacePlan
from .view_sampler import PATIENCE, PATIENCE_PLACED, Mix

MAX_DROPPED = 30  # frames whose labels cannot be read, or whose cameras are not where they should be
# Which module draws a preset, what light and air it is given, and how many moments may be let go: this engine's races
# begin and end, and each should be drawn more than once.
ENGINES = {COURSE: "pystk1"}
LOOKS = {COURSE: Look.as_drawn}
PATIENCES = {COURSE: 2}


class Stopwatch:
    """CPU seconds by part of the work."""

    def __init__(self):
        self.seconds = Counter()

    @contextmanager
    def part(self, name: str):
        """Count the block's time to the part `name`."""
        begin = time.process_time()
        yield
        self.seconds[name] += time.process_time() - begin


def run(plan: RacePlan, folder: Path) -> dict:
    """Draw all frames of a race into `folder`.

    Returns:
        What `.races/NNNNN.json` holds.
    """
    begin, clock = time.time(), Stopwatch()
    rng = np.random.default_rng(plan.seed)
    mix = Mix(plan.mix, PATIENCES.get(plan.preset, PATIENCE_PLACED if plan.placed else PATIENCE))
    dropped, saved = Counter(), 0
    with clock.part("load"):
        # an engine is there only in a process that draws with it
        race = import_module(f".engines.{ENGINES.get(plan.preset, 'pystk2')}.engine", __package__).Race(plan)
        race.start()
    moments = race.moments(rng)
    while saved < plan.frames and dropped.total() < MAX_DROPPED:
        with clock.part("physics"):
            seen = next((seen for seen in moments if mix.takes(seen)), None)
            if seen is None:
                break
            race.arrive()
        with clock.part("draw"):
            drawn = race.draw()
        with clock.part("label"):
            try:
                moment = race.read(drawn)
            except UnreadableError as problem:
                dropped[str(problem)] += 1
                continue
            info = describe(plan, race, moment)
        with clock.part("store"):
            look = LOOKS.get(plan.preset, Look.random)(np.random.default_rng([plan.seed, saved]))
            store(folder, plan.first_frame + saved, info, moment.views, look, plan.quality)
        mix.add(np.array([len(build_scene(info, view).karts) for view in range(len(moment.views))]))
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


def describe(plan: RacePlan, race, moment: Moment) -> dict:
    """The frame's `info.json`. `race`: an engine's."""
    return {
        "track": plan.track,
        "karts": [plan.karts[kart] for kart in moment.order],
        "detections": [view.detections for view in moment.views],
        "distance_down_track": [round(float(kart.distance_down_track), 2) for kart in moment.karts],
        "velocity": [_rounded(kart.velocity) for kart in moment.karts],
        "location": [_rounded(kart.location) for kart in moment.karts],
        "rotation": [_rounded(kart.rotation) for kart in moment.karts],
        "race": plan.number,
        "time": round(float(race.state.time), 2),
    }


def _rounded(vector) -> list[float]:
    """A vector of the engine, to the millimetre."""
    return [round(float(x), 3) for x in vector]


def store(folder: Path, frame: int, info: dict, views: list[View], look: Look, quality: int) -> None:
    """Write a frame: its images first, so that an `info.json` never lacks one.

    Args:
        folder: of the split.
        frame: its number.
        info: what `describe` says.
        views: what the cameras saw.
        look: light and air.
        quality: of the JPEG files.
    """
    name = f"{frame:05x}"
    for number, view in enumerate(views):
        image = Image.fromarray(view.image)
        distance = view.distance
        if distance is not None:
            distance = distance[:: image.height // VIEW_SIZE[1], :: image.width // VIEW_SIZE[0]]
        small = np.asarray(image.resize(VIEW_SIZE, Image.Resampling.BOX))
        with atomic_write(folder / f"{name}_{number:02d}_im.jpg") as temporary:
            look.apply(small, distance).save(temporary, "JPEG", quality=quality)
    with atomic_write(folder / f"{name}_info.json") as temporary:
        temporary.write_text(json.dumps(info))


def main() -> None:
    """Draw the race whose plan comes on standard input."""
    folder = Path(sys.argv[1])
    plan = RacePlan.from_json(sys.stdin.read())
    child.end_after(lambda: write_json(plan.record_in(folder), run(plan, folder)))


if __name__ == "__main__":
    main()
