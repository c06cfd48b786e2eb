"""Summarise a rendered split: speed, visible karts per view, kart-track coverage."""

from collections import Counter
from pathlib import Path

from homework.labels.frame_info import read_frame_info
from homework.labels.rows import info_files
from homework.labels.scene import build_scene
from homework.utils.io import read_json
from homework.utils.progress import progress_bar

from .planner import COURSE_KART_COUNT_MIX, KARTS, TRACKS
from .renderer import SETTINGS_FILE

MAX_KARTS = len(COURSE_KART_COUNT_MIX)  # views with more are counted with these


def stats(folder: Path, /) -> None:
    """Print speed by track, visible karts per view, and kart-track coverage of a rendered split.

    Example: python -m supertux stats data/mine

    Args:
        folder: what `render --output` got
    """
    bar = progress_bar(info_files(folder), desc="reading frames", unit="frame", delay=1)
    infos = [read_frame_info(path) for path in bar]
    settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).exists() else {}
    # frames that came from elsewhere, as those of the sample, have no records; older ones have no total
    records = [record for path in (folder / ".races").glob("[!.]*.json") if "cpu_s" in (record := read_json(path))]
    lines = [*speed_table(records), ""] if records else []
    lines += kart_count_table(infos)
    print("\n".join([*lines, coverage_line(infos, settings.get("tracks", TRACKS), settings.get("karts", KARTS))]))


def speed_table(records: list[dict]) -> list[str]:
    """Return a table of the speed by CPU time, which other processes do not change, by track and for all tracks."""
    lines = [f"{'track':20} {'races':>6} {'frames':>7} {'views':>8} {'views per CPU s':>16}"]
    for track in [*sorted({record["track"] for record in records}), "all"]:
        some = [record for record in records if track in (record["track"], "all")]
        frames, views, seconds = (sum(record[name] for record in some) for name in ("frames", "views", "cpu_s"))
        lines.append(f"{track:20} {len(some):6,} {frames:7,} {views:8,} {views / max(1e-9, seconds):16.1f}")
    return lines


def kart_count_table(infos: list[dict]) -> list[str]:
    """Return a table of the views by their number of visible karts, by the label rule."""
    counts = Counter()
    for info in infos:
        counts.update(min(len(build_scene(info, v).karts), MAX_KARTS) for v in range(len(info["detections"])))
    course = (0.0, *COURSE_KART_COUNT_MIX)
    names = [f"{number}{'+' if number == MAX_KARTS else ''}" for number in range(MAX_KARTS + 1)]
    return [
        f"{'karts in a view':20}" + "".join(f"{name:>7}" for name in names),
        f"{'drawn, %':20}" + "".join(f"{100 * counts[n] / max(1, counts.total()):7.1f}" for n in range(len(names))),
        f"{'course, %':20}" + "".join(f"{100 * share / sum(course):7.1f}" for share in course),
    ]


def coverage_line(infos: list[dict], tracks: list[str], karts: list[str]) -> str:
    """Return how many views have each combination of track and camera target."""
    pairs = Counter({(track, kart): 0 for track in tracks for kart in karts})
    for info in infos:
        pairs.update((info["track"], kart) for kart in info["karts"][: len(info["detections"])])
    counts = list(pairs.values())
    text = f"kart-track combinations: {len(counts)}, each with {min(counts):,} to {max(counts):,} views"
    return f"{text}, {counts.count(0)} with none"
