"""One race in a process of its own: `python -m supertux.race FOLDER < plan.json`.

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
from pathlib import Path

import numpy as np
from PIL import Image

from homework.errors import replacing, write_json
from homework.scene import KART_CLASS, VIEW_SIZE, scene

from . import child, labels
from .engine import DRAWN_SIZE, Race
from .look import Look
from .mix import PATIENCE, PATIENCE_PLACED, Mix
from .plans import RacePlan

MAX_DROPPED = 30  # frames whose labels cannot be read, or whose cameras are not where they should be
# The classes of the course's data that the engine tells: pickups, nitro, and what one should not drive over.
ITEM_CLASS = {"BONUS_BOX": 4, "EASTER_EGG": 4, "NITRO_BIG": 5, "NITRO_SMALL": 5, "BANANA": 6, "BUBBLEGUM": 6}


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
    mix = Mix(plan.mix, PATIENCE_PLACED if plan.placed else PATIENCE)
    dropped, saved = Counter(), 0
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
    """Why a frame cannot be used, or None: no matrix, or a camera that is not at the kart it should follow."""
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
    """Draw the race whose plan comes on standard input."""
    folder = Path(sys.argv[1])
    plan = RacePlan.from_json(sys.stdin.read())
    child.end_after(lambda: write_json(plan.record_in(folder), run(plan, folder)))


if __name__ == "__main__":
    main()
