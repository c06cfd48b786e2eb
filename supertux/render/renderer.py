"""Draw labelled frames: the parent of the processes that draw the races."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from homework.utils.errors import InputError, check_min, first_line, resumable
from homework.utils.io import read_json, write_json
from homework.utils.parallel import available_cores, cancel_on_error, interruptible_as_completed
from homework.utils.progress import progress_bar

from .engines import ENGINES, check_installed
from .engines.pystk2 import shaders
from .planner import COURSE_KART_COUNT_MIX, KARTS, TRACKS, RacePlan, race_plans
from .subprocesses import interrupt_all, run_module

logger = logging.getLogger(__name__)

SETTINGS_FILE = "render.json"
RACE_TIMEOUT_S = 900


@resumable()
def render(
    *,
    output: Path,
    frames: int = 2000,
    seed: int = 1,
    tracks: str = "",
    karts: str = "",
    preset: str = "hd",
    kart_count_mix: str = "",
    workers: int = 0,
    ray: str = "",
) -> None:
    """Draw labelled frames of the game, in the course's format. Run again, it resumes.

    Example: python -m supertux render --output data/mine --frames 2000 --seed 1

    Args:
        output: the split's folder, for instance data/mine
        frames: number of frames; each has a view for up to 8 karts (preset course: 10)
        seed: fixes the labels, whatever the number of workers (preset course: the races)
        tracks: names with commas between them; default all 21
        karts: names with commas between them; default all 16
        preset: ld (fastest), sd, hd; or course: the legacy engine, which drew the course's frames
        kart_count_mix: shares of views with 1, 2, ... karts, as 60,26,8; default the course's
        workers: number of processes; default one per core
        ray: address of a Ray cluster to draw on; auto: a running local one, local: a new one
    """
    check_min(0, workers=workers)
    given = {"tracks": (tracks, TRACKS), "karts": (karts, KARTS)}
    names = {key: text.replace(" ", "").split(",") if text else list(known) for key, (text, known) in given.items()}
    mix = _parse_mix(kart_count_mix)
    plans = list(race_plans(seed, frames, preset=preset, kart_count_mix=mix, **names))
    check_installed(preset)
    _check_settings_match(output, {"seed": seed, "preset": preset, **names, "mix": list(mix)})
    remaining = [plan for plan in plans if not is_done(plan, output)]
    logger.info(f"{output}: {len(plans)} races, {len(plans) - len(remaining)} of them drawn already")
    lost, unreadable = draw_races(remaining, output, workers, ray)
    count = sum(1 for _ in output.glob("[!.]*_info.json"))
    retry = " (run the same command again to retry)" if lost else ""
    logger.info(f"{output}: {count:,} frames; {lost} races lost{retry}, {unreadable} frames left out as unreadable")


def draw_races(plans: list[RacePlan], output: Path, workers: int = 0, ray: str = "") -> tuple[int, int]:
    """Draw races under a progress bar, and print which are lost.

    Args:
        workers: number of processes; 0 for one per core.
        ray: address of a Ray cluster to draw on instead.

    Returns:
        The number of lost races, and of frames of the others with unreadable labels.
    """
    run = _run_on_ray(plans, output, ray) if ray else _run_in_processes(plans, output, workers or available_cores())
    lost = unreadable = 0
    total = sum(plan.num_views for plan in plans)
    with progress_bar(total=total, desc="drawing", unit="view", unit_scale=True) as progress:
        for plan, result in run:
            progress.update(plan.num_views)
            unreadable += result.get("missing", 0)
            if "error" in result:
                lost += 1
                progress.write(f"race {plan.number} on {plan.track} is lost: {result['error']}")
    return lost, unreadable


def is_done(plan: RacePlan, output: Path) -> bool:
    """Return whether the race has been drawn, with as many frames as planned."""
    path = plan.record_path(output)
    record = read_json(path) if path.exists() else {"frames": 0, "missing": 0}
    return record["frames"] + record["missing"] >= plan.frames


def draw_race(plan: RacePlan, output: Path) -> dict:
    """Draw one race in a process of its own; return the race's record, or `{"error": reason}`."""
    assets = ENGINES[plan.preset].load("assets")
    process = {"environment": assets.environment(), "python": assets.INTERPRETER, "timeout": RACE_TIMEOUT_S}
    problem = run_module("supertux.render.worker", output, stdin=json.dumps(asdict(plan)), **process)
    if problem is None and is_done(plan, output):
        return read_json(plan.record_path(output))
    return {"error": problem or "its process ended early, without an error"}


def _run_in_processes(plans: list[RacePlan], output: Path, workers: int) -> Iterator[tuple[RacePlan, dict]]:
    """Draw the races, `workers` at a time; yield each with the result of `draw_race` as it ends."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(draw_race, plan, output): plan for plan in plans}
        with cancel_on_error(pool, interrupt_all):
            for future in interruptible_as_completed(futures):
                yield futures[future], future.result()


def _run_on_ray(plans: list[RacePlan], output: Path, address: str) -> Iterator[tuple[RacePlan, dict]]:
    """Draw the races as tasks of a Ray cluster whose machines share `output`, this repository and the assets."""
    try:
        import ray
    except ImportError:
        raise InputError("ray", "not installed", f"{sys.executable} -m pip install 'ray>=2.40'") from None
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    ray.init(address=None if address == "local" else address, runtime_env=environment, log_to_driver=False)
    task = ray.remote(num_cpus=1, max_retries=0)(draw_race)
    waiting = {task.remote(plan, output.resolve()): plan for plan in plans}
    while waiting:
        done, _ = ray.wait(list(waiting))
        plan = waiting.pop(done[0])
        try:
            yield plan, ray.get(done[0])
        except ray.exceptions.RayError as error:
            yield plan, {"error": first_line(error)}
    ray.shutdown()


def _parse_mix(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(share) for share in text.split(",")) if text else COURSE_KART_COUNT_MIX
    except ValueError:
        shares = ()
    if not (all(share >= 0 for share in shares) and 0 < sum(shares) < float("inf")):
        remedy = "give numbers like 60,26,8 for 1, 2, 3 karts"
        raise InputError("--kart-count-mix", f"`{text}` is not a list of shares", remedy)
    return shares


def _check_settings_match(output: Path, settings: dict) -> None:
    """Store the settings of a new folder. Raises InputError for a folder with frames of other settings or source."""
    path = output / SETTINGS_FILE
    settings |= {"labels": shaders.VERSION, "at rest": "from the front"}  # older folders lack the latter
    if not path.exists():
        if any(output.glob("[!.]*_info.json")):
            raise InputError(output, "it holds frames of another source", "give another --output")
        os.makedirs(output / ".races", exist_ok=True)
        write_json(path, settings)
    drawn_with = read_json(path)
    for key, value in settings.items():
        if drawn_with.get(key) != value:
            problem = f"its frames were drawn with {key} {drawn_with.get(key)}, not {value}"
            raise InputError(path, problem, "give the same settings or another --output")
