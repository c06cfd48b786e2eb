"""What a run of `render` has drawn and what it cost, from the races' records and the frames' labels."""

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

from .planner import KARTS, OFFICIAL_MIX, TRACKS
from .renderer import SETTINGS

PARTS = ("draw", "label", "store", "physics")  # of the CPU seconds of a record, those that grow with the views
MOST_KARTS = len(OFFICIAL_MIX)  # views with more count with these
ENDS = 10  # races at the begin and at the end of a run, whose memory is compared


def stats(folder: Path, /) -> None:
    """Print the speed by track, the mix of visible karts, the kart-track pairs, the files' quality and the memory.

    Example: python -m supertux stats data/mine

    Args:
        folder: what `render --out` got
    """
    # frames that came from elsewhere have no records, as those of `sample/` in a clone
    shipped = not (folder / ".races").exists() and any(folder.glob("*_info.json"))
    records = [] if shipped else read_records(folder)
    paths = info_files(folder)
    infos = [read_frame_info(path) for path in progress_bar(paths, desc="reading frames", unit="frame", delay=1)]
    lines = [*mix_table(infos), "", pairs_line(infos, *_settings(folder)), quality_line(paths)]
    if records:
        lines = [*speed_table(records), "", *lines, memory_line(records)]
    print("\n".join(lines))


def read_records(folder: Path) -> list[dict]:
    """The records of all races that have been drawn, in order of their numbers.

    Raises:
        InputError: there is none.
    """
    records = [read_json(path) for path in sorted((folder / ".races").glob("*.json"))]
    if not any(record["frames"] for record in records):
        remedy = f"draw some with `python -m supertux render --out {folder}`, or name another folder"
        raise InputError(folder, "no race has been drawn into it", remedy)
    return records


def speed_table(records: list[dict]) -> list[str]:
    """Lines: a row for each track and one for all. Times are CPU seconds, so that other work doesn't change them."""
    head = f"{'track':20} {'races':>6} {'frames':>7} {'views':>8} {'views/s':>8} {'load s/race':>12}"
    lines = [head + "".join(f"{part + ' ms':>11}" for part in PARTS) + f" {'peak MB':>8}"]
    for track in sorted({record["track"] for record in records}):
        lines.append(_speed_row(track, [record for record in records if record["track"] == track]))
    return [*lines, _speed_row("all", records), "(views/s: by CPU second; ms: CPU milliseconds by view)"]


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


def mix_table(infos: list[dict]) -> list[str]:
    """Lines: the share of views by number of karts that count, beside the course's; and how many follow the ego kart.

    View v of a frame follows kart v. The label rule takes the kart nearest to the middle as the ego kart, which may be
    another one.
    """
    counts, views, followed = Counter(), 0, 0
    for info in infos:
        for view in range(len(info["detections"])):
            seen = build_scene(info, view)
            counts[min(len(seen.karts), MOST_KARTS)] += 1
            views += 1
            followed += seen.ego is not None and seen.ego.track_id == view
    official = (0.0, *OFFICIAL_MIX)
    names = [f"{number}{'+' if number == MOST_KARTS else ''}" for number in range(MOST_KARTS + 1)]
    return [
        f"{'karts in a view':20}" + "".join(f"{name:>7}" for name in names),
        f"{'drawn, %':20}" + "".join(f"{100 * counts[number] / max(1, views):7.1f}" for number in range(len(names))),
        f"{'course, %':20}" + "".join(f"{100 * share / sum(official):7.1f}" for share in official),
        f"the followed kart is the ego kart in {100 * followed / max(1, views):.1f} % of {views:,} views",
    ]


def pairs_line(infos: list[dict], tracks: list[str], karts: list[str]) -> str:
    """How evenly the views follow the karts on the tracks, over all pairs that could be."""
    pairs = Counter({(track, kart): 0 for track in tracks for kart in karts})
    for info in infos:
        pairs.update((info["track"], kart) for kart in info["karts"][: len(info["detections"])])
    counts = list(pairs.values())
    text = f"kart-track pairs: {len(counts)}, each followed by {min(counts):,} to {max(counts):,} views"
    return f"{text}, {counts.count(0)} by none"


def quality_line(paths: list[Path]) -> str:
    """The JPEG quality of the frames' first views, as Pillow counts it, from 1 to 100; by their quantization tables.

    Args:
        paths: the frames' info files; frames without a first view are left out.

    Raises:
        InputError: a view that is no image.
    """
    known = {}
    for quality in range(100, 0, -1):  # of those with the same tables the lowest
        stream = io.BytesIO()
        Image.new("RGB", (8, 8)).save(stream, "JPEG", quality=quality)
        known[_tables(Image.open(stream))] = quality
    found = Counter()
    for path in paths:
        view = path.with_name(Path(image_file(path, 0)).name)
        if view.exists():
            with open_checked(view) as image:
                found[known.get(_tables(image), "another")] += 1
    shares = ", ".join(f"{quality} in {count:,} frames" for quality, count in found.most_common())
    return f"JPEG quality: {shares or 'no view is there'}"


def _tables(image: Image.Image) -> tuple:
    """An image's quantization tables; none in a format without them."""
    return tuple(tuple(table) for _, table in sorted(getattr(image, "quantization", {}).items()))


def memory_line(records: list[dict]) -> str:
    """The largest memory of a process among the first and among the last races."""
    first, last = (max(record["peak_mb"] for record in some) for some in (records[:ENDS], records[-ENDS:]))
    return f"peak memory of a process: {first:,} MB in the first {ENDS} races, {last:,} MB in the last {ENDS}"


def _settings(folder: Path) -> tuple[list[str], list[str]]:
    """The tracks and the karts that the folder was to be drawn with."""
    path = folder / SETTINGS
    settings = read_json(path) if path.exists() else {}
    return settings.get("tracks", list(TRACKS)), settings.get("karts", list(KARTS))
