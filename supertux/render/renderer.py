"""Labelled frames from the game: the parent of the processes that draw the races."""

import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from homework.utils.errors import InputError, first_line
from homework.utils.io import read_json, write_json
from homework.utils.parallel import available_cores, cancel_on_error, interruptible_as_completed
from homework.utils.progress import progress_bar

from . import subprocesses as child
from .engines.pystk1 import assets as course_art
from .engines.pystk2 import assets as art
from .engines.pystk2 import shaders
from .planner import COURSE, KARTS, OFFICIAL_MIX, TRACKS, RacePlan, names_in, race_plans

logger = logging.getLogger(__name__)

SETTINGS = "render.json"
SEEN_AT_REST = "from the front"  # folders that were drawn before cameras could look back don't say so
RACE_LIMIT = 900  # seconds after which a race is given up


def render(
    *,
    out: Path,
    frames: int = 2000,
    seed: int = 1,
    tracks: str = "",
    karts: str = "",
    preset: str = "hd",
    mix: str = "",
    workers: int = 0,
    ray: str = "",
) -> None:
    """Draw labelled frames of races of the game, in the course's format. Run again, it goes on where it stopped.

    Example: python -m supertux render --out data/mine --frames 2000 --seed 1

    Args:
        out: the split's folder, for instance data/mine
        frames: how many frames; each has a view for up to 8 karts, 10 by course
        seed: the same one gives the same labels with any number of workers; by course the same races
        tracks: names with commas between them; without it, all 21
        karts: names with commas between them; without it, all 16
        preset: ld (fastest), sd, hd, or course: by the engine of the course's frames
        mix: shares of views with 1, 2, ... karts, as 60,26,8; without it, the course's
        workers: processes at a time; without it, one a core
        ray: address of a Ray cluster to draw on; auto: one that runs here, local: a new one
    """
    if preset == COURSE:
        course_art.installed()
    else:
        art.require_engine()
        art.installed()
    if workers < 0:
        raise InputError("--workers", f"{workers} processes", "give 1 or more, or nothing for one a core")
    settings = {
        "seed": seed,
        "preset": preset,
        "tracks": names_in(tracks) or list(TRACKS),
        "karts": names_in(karts) or list(KARTS),
        "mix": _shares(mix),
    }
    plans = list(race_plans(frames=frames, **settings))
    _require_same(out, settings)
    todo = [plan for plan in plans if not is_done(plan, out)]
    logger.info(f"{out}: {len(plans)} races, {len(plans) - len(todo)} of them drawn already")
    run = _with_ray(todo, out, ray) if ray else with_processes(todo, out, workers or available_cores())
    failed, missing = watch(run, sum(views_of(plan) for plan in todo))
    count = sum(1 for _ in out.glob("*_info.json"))
    logger.info(f"{out}: {count:,} frames; {failed} races lost, {missing} frames left out for unreadable labels")
    if failed:
        logger.info("run the same command again to try the lost races once more")


def watch(run: Iterator[tuple[RacePlan, dict]], views: int) -> tuple[int, int]:
    """Let the races run, under a progress bar of `views`; say which are lost.

    Returns:
        How many races are lost, and how many frames of the others are missing.
    """
    failed = missing = 0
    with progress_bar(total=views, desc="drawing", unit="view", unit_scale=True) as progress:
        for plan, result in run:
            progress.update(views_of(plan))
            missing += result.get("missing", 0)
            if "error" in result:
                failed += 1
                progress.write(f"race {plan.number} on {plan.track} is lost: {result['error']}")
    return failed, missing


def views_of(plan: RacePlan) -> int:
    """How many views a race is to give."""
    return plan.frames * plan.cameras


def is_done(plan: RacePlan, out: Path) -> bool:
    """Whether the race has been drawn, with as many frames as it should now have."""
    path = plan.record_in(out)
    if not path.exists():
        return False
    record = read_json(path)
    return record["frames"] + record["missing"] >= plan.frames


def draw_race(plan: RacePlan, out: Path) -> dict:
    """Draw one race in a process of its own, whatever becomes of it.

    Returns:
        The race's record, or `{"error": why there is none}`.
    """
    if plan.preset == COURSE:
        engine = {"environment": course_art.environment(), "python": course_art.interpreter()}
    else:
        engine = {"environment": art.environment(art.installed())}
    problem = child.run("supertux.render.worker", out, text=plan.to_json(), limit=RACE_LIMIT, **engine)
    if problem is None and is_done(plan, out):
        return read_json(plan.record_in(out))
    return {"error": problem or "it ended without a word"}


def with_processes(plans: list[RacePlan], out: Path, workers: int) -> Iterator[tuple[RacePlan, dict]]:
    """Draw the races, `workers` at a time; yields each with what `draw_race` returned, as they end."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(draw_race, plan, out): plan for plan in plans}
        with cancel_on_error(pool, child.stop_all):
            for future in interruptible_as_completed(futures):
                yield futures[future], future.result()


def _with_ray(plans: list[RacePlan], out: Path, address: str) -> Iterator[tuple[RacePlan, dict]]:
    """The same races as tasks of a Ray cluster whose machines share `out`, this repository and the installed art."""
    try:
        import ray
    except ImportError:
        raise InputError("ray", "not installed", f"{sys.executable} -m pip install 'ray>=2.40'") from None
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    ray.init(address=None if address == "local" else address, runtime_env=environment, log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=0)(draw_race)
    waiting = {task.remote(plan, out.resolve()): plan for plan in plans}
    while waiting:
        done, _ = ray.wait(list(waiting))
        plan = waiting.pop(done[0])
        try:
            yield plan, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield plan, {"error": first_line(error)}
    ray.shutdown()


def _shares(text: str) -> tuple[float, ...]:
    if not text:
        return OFFICIAL_MIX
    try:
        shares = tuple(float(share) for share in text.split(","))
        valid = all(share >= 0 for share in shares) and 0 < sum(shares) < float("inf")
    except ValueError:
        valid = False
    if not valid:
        raise InputError("--mix", f"`{text}` is not a list of shares", "give numbers like 60,26,8 for 1, 2, 3 karts")
    return shares


def _require_same(out: Path, settings: dict) -> None:
    """Remember what the folder was drawn with; a folder holds frames of one setting."""
    path = out / SETTINGS
    settings = settings | {"mix": list(settings["mix"]), "labels": shaders.VERSION, "at rest": SEEN_AT_REST}
    if path.exists():
        drawn_with = read_json(path)
        for key, value in settings.items():
            if drawn_with.get(key) != value:
                problem = f"its frames were drawn with {key} {drawn_with.get(key)}, not {value}"
                raise InputError(path, problem, "give the same settings or another --out")
        return
    if any(out.glob("*_info.json")):
        raise InputError(out, "it holds frames of another source", "give another --out")
    os.makedirs(out / ".races", exist_ok=True)
    write_json(path, settings)
