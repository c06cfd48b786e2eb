"""Summarise a rendered split: speed, label distribution, file quality, memory."""

import io
from collections import Counter
from pathlib import Path

from PIL import Image

from homework.labels.frame_info import read_frame_info
from homework.labels.rows import image_file, info_files
from homework.labels.scene import build_scene
from homework.utils.errors import InputError
from homework.utils.images import open_checked
from homework.utils.io import read_json
from homework.utils.progress import progress_bar

from .planner import COURSE_KART_COUNT_MIX, KARTS, TRACKS
from .renderer import SETTINGS_FILE

PARTS = ("draw", "label", "store", "physics")  # of a record's CPU seconds, those that grow with the number of views
MAX_KARTS = len(COURSE_KART_COUNT_MIX)  # views with more are counted with these
NUM_END_RACES = 10  # at the begin and at the end of a run, whose memory is compared


def stats(folder: Path, /) -> None:
    """Print speed by track, visible karts per view, kart-track coverage, JPEG quality and memory of a rendered split.

    Example: python -m supertux stats data/mine

    Args:
        folder: what `render --output` got
    """
    # frames that came from elsewhere, as those of `sample/` in a clone, have no records
    has_records = (folder / ".races").exists() or not any(folder.glob("*_info.json"))
    records = read_records(folder) if has_records else []
    paths = info_files(folder)
    infos = [read_frame_info(path) for path in progress_bar(paths, desc="reading frames", unit="frame", delay=1)]
    settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
    tracks, karts = settings.get("tracks", TRACKS), settings.get("karts", KARTS)
    lines = [*kart_count_table(infos), "", kart_track_coverage_line(infos, tracks, karts), quality_line(paths)]
    if records:
        lines = [*speed_table(records), "", *lines, memory_line(records)]
    print("\n".join(lines))


def read_records(folder: Path) -> list[dict]:
    """Read the records of all drawn races, in order of their numbers. Raises InputError if none has frames."""
    records = [read_json(path) for path in sorted((folder / ".races").glob("*.json"))]
    if not any(record["frames"] for record in records):
        remedy = f"run `python -m supertux render --output {folder}`, or name another folder"
        raise InputError(folder, "no race has been drawn into it", remedy)
    return records


def speed_table(records: list[dict]) -> list[str]:
    """Return a table of CPU times, which other processes do not change, by track and for all tracks."""
    head = f"{'track':20} {'races':>6} {'frames':>7} {'views':>8} {'views/s':>8} {'load s/race':>12}"
    lines = [head + "".join(f"{part + ' ms':>11}" for part in PARTS) + f" {'peak MB':>8}"]
    for track in sorted({record["track"] for record in records}):
        lines.append(_speed_row(track, [record for record in records if record["track"] == track]))
    return [*lines, _speed_row("all", records), "(views/s: per CPU second; ms: CPU milliseconds per view)"]


def _speed_row(name: str, records: list[dict]) -> str:
    views = sum(record["views"] for record in records)
    seconds = Counter()
    for record in records:
        seconds.update(record["cpu_seconds"])
    rate = views / max(1e-9, seconds.total())
    row = f"{name:20} {len(records):6,} {sum(record['frames'] for record in records):7,} {views:8,} {rate:8.1f}"
    row += f" {seconds['load'] / len(records):12.1f}"
    row += "".join(f"{1000 * seconds[part] / max(1, views):11.1f}" for part in PARTS)
    return row + f" {max(record['peak_mb'] for record in records):8,}"


def kart_count_table(infos: list[dict]) -> list[str]:
    """Return a table of views by number of visible karts, and the share whose camera target is the ego kart.

    The camera target of view v is kart v. The ego kart, by the label rule, is the one nearest to the image's centre,
    which may be another one.
    """
    counts, ego_is_target = Counter(), 0
    for info in infos:
        for view in range(len(info["detections"])):
            scene = build_scene(info, view)
            counts[min(len(scene.karts), MAX_KARTS)] += 1
            ego_is_target += scene.ego is not None and scene.ego.track_id == view
    views = counts.total()
    course = (0.0, *COURSE_KART_COUNT_MIX)
    names = [f"{number}{'+' if number == MAX_KARTS else ''}" for number in range(MAX_KARTS + 1)]
    return [
        f"{'karts in a view':20}" + "".join(f"{name:>7}" for name in names),
        f"{'drawn, %':20}" + "".join(f"{100 * counts[number] / max(1, views):7.1f}" for number in range(len(names))),
        f"{'course, %':20}" + "".join(f"{100 * share / sum(course):7.1f}" for share in course),
        f"the camera target is the ego kart in {100 * ego_is_target / max(1, views):.1f} % of {views:,} views",
    ]


def kart_track_coverage_line(infos: list[dict], tracks: list[str], karts: list[str]) -> str:
    """Return how many views have each combination of track and camera target."""
    pairs = Counter({(track, kart): 0 for track in tracks for kart in karts})
    for info in infos:
        pairs.update((info["track"], kart) for kart in info["karts"][: len(info["detections"])])
    counts = list(pairs.values())
    text = f"kart-track combinations: {len(counts)}, each with {min(counts):,} to {max(counts):,} views"
    return f"{text}, {counts.count(0)} with none"


def quality_line(paths: list[Path]) -> str:
    """Return the JPEG quality of the frames' first views, 1 to 100 as Pillow counts, from their quantization tables."""
    qualities = {}
    for quality in range(100, 0, -1):  # of those with the same tables the lowest
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality)
        qualities[_quantization(Image.open(stream))] = quality
    counts = Counter()
    for path in paths:
        view = path.with_name(Path(image_file(path, 0)).name)
        if view.exists():
            with open_checked(view) as image:
                counts[qualities.get(_quantization(image), "unknown")] += 1
    shares = ", ".join(f"{quality} in {count:,} frames" for quality, count in counts.most_common())
    return f"JPEG quality: {shares or 'no images'}"


def _quantization(image: Image.Image) -> tuple:
    """Return an image's quantization tables; empty in a format without them."""
    return tuple(tuple(table) for _, table in sorted(getattr(image, "quantization", {}).items()))


def memory_line(records: list[dict]) -> str:
    """Return the peak memory of a process among the first and among the last races."""
    ends = (records[:NUM_END_RACES], records[-NUM_END_RACES:])
    first, last = (max(record["peak_mb"] for record in some) for some in ends)
    spans = f"{first:,} MB in the first {NUM_END_RACES} races, {last:,} MB in the last {NUM_END_RACES}"
    return f"peak memory per process: {spans}"
