"""Draw one race in a process of its own: `python -m supertux.render.worker FOLDER < plan.json`.

Writes the race's frames, each whole or not at all, and at last its record, `.races/NNNNN.json`. The process needs the
environment of the engine's `assets`. It is separate since the engine can end it, and since a race drawn after another
in the same process would depend on it.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from homework.labels.scene import VIEW_SIZE, build_scene
from homework.utils.io import atomic_write, write_json

from .color_augment import PhotometricJitter
from .engines import ENGINES, CameraView, LabelledFrame, UnreadableError
from .planner import RacePlan
from .subprocesses import run_and_exit
from .view_sampler import HistogramSampler

MAX_DROPPED_FRAMES = 30  # whose labels cannot be read, or whose cameras are not at their targets


def run_race(plan: RacePlan, folder: Path) -> dict:
    """Draw all frames of a race into `folder`, and return the race's record."""
    dropped, saved = Counter(), 0
    race = ENGINES[plan.preset].load("engine").Race(plan)
    candidates = race.candidates(np.random.default_rng(plan.seed))
    sampler = HistogramSampler(plan.kart_count_mix, race.max_rejections)
    while saved < plan.frames and dropped.total() < MAX_DROPPED_FRAMES:
        if not any(sampler.accept(counts) for counts in candidates):
            break
        race.settle_cameras()
        try:
            frame = race.read()
        except UnreadableError as problem:
            dropped[str(problem)] += 1
            continue
        info = frame_info(plan, frame)
        jitter = race.sample_jitter(np.random.default_rng([plan.seed, saved]))
        write_frame(folder, plan.first_frame + saved, info, frame.views, jitter, plan.quality)
        sampler.add(np.array([len(build_scene(info, view).karts) for view in range(len(frame.views))]))
        saved += 1
    return {
        "race": plan.number,
        "track": plan.track,
        "placed": plan.is_static,
        "frames": saved,
        "views": saved * race.num_cameras,
        "missing": plan.frames - saved,
        "dropped": dict(dropped),
        "cpu_s": round(time.process_time(), 3),
    }


def frame_info(plan: RacePlan, frame: LabelledFrame) -> dict:
    """Return the content of a frame's `info.json`; vectors are rounded to the millimetre."""
    vectors = {
        name: [[round(float(x), 3) for x in getattr(kart, name)] for kart in frame.karts]
        for name in ("velocity", "location", "rotation")
    }
    return {
        "track": plan.track,
        "karts": [plan.karts[kart] for kart in frame.order],
        "detections": [view.detections for view in frame.views],
        "distance_down_track": [round(float(kart.distance_down_track), 2) for kart in frame.karts],
        **vectors,
        "race": plan.number,
        "time": round(frame.time, 2),
    }


def write_frame(
    folder: Path, number: int, info: dict, views: list[CameraView], jitter: PhotometricJitter, quality: int
) -> None:
    """Write a frame into a split's folder: its images first, so that an `info.json` never lacks one."""
    name = f"{number:05x}"
    for camera, view in enumerate(views):
        small = np.asarray(Image.fromarray(view.image).resize(VIEW_SIZE, Image.Resampling.BOX))
        with atomic_write(folder / f"{name}_{camera:02d}_im.jpg") as temporary:
            jitter.apply(small).save(temporary, "JPEG", quality=quality)
    with atomic_write(folder / f"{name}_info.json") as temporary:
        temporary.write_text(json.dumps(info))


def main() -> None:
    """Draw the race whose plan is on standard input."""
    folder = Path(sys.argv[1])
    plan = RacePlan(**json.load(sys.stdin))
    run_and_exit(lambda: write_json(plan.record_path(folder), run_race(plan, folder)))


if __name__ == "__main__":
    main()
