"""Statistics of records and labels that are made by hand."""

import json
from pathlib import Path

import pytest

from homework.utils.io import write_json
from supertux.render.planner import KARTS, TRACKS
from supertux.render.stats import coverage_line, kart_count_table, speed_table, stats
from tests.conftest import assert_one_line_error

MIDDLE, SIDE, SMALL = [280, 180, 320, 220], [40, 180, 100, 220], [0, 0, 8, 8]


def record(race: int, track: str, **values) -> dict:
    common = {"frames": 2, "views": 10, "missing": 0, "cpu_s": 6.0}
    return {"race": race, "track": track} | common | values


def info(track: str, karts: list[str], *views: list) -> dict:
    """Each view is a list of (kart, box)."""
    return {"track": track, "karts": karts, "detections": [[[1, kart, *box] for kart, box in view] for view in views]}


def make_folder(folder: Path, records: list[dict], infos: list[dict], settings: dict | None = None) -> Path:
    for item in records:
        write_json(folder / f".races/{item['race']:05d}.json", item)
    for number, item in enumerate(infos):
        (folder / f"{number:05x}_info.json").write_text(json.dumps(item))
    if settings:
        write_json(folder / "render.json", settings)
    return folder


def row_of(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if line.startswith(name)).removeprefix(name).split()


def test_speed_is_per_cpu_second_by_track_and_overall():
    lines = speed_table([record(0, "abyss"), record(1, "xr591", cpu_s=3.0), record(2, "abyss")])
    assert row_of(lines, "abyss") == "2 4 20 1.7".split()
    assert row_of(lines, "xr591") == "1 2 10 3.3".split()
    assert row_of(lines, "all") == "3 6 30 2.0".split()


def test_a_race_without_views_divides_nothing_by_zero():
    empty = record(0, "abyss", frames=0, views=0)
    assert row_of(speed_table([empty]), "abyss") == "1 0 0 0.0".split()


def test_kart_counts_follow_the_label_rule():
    two = [(0, MIDDLE), (1, SIDE), (2, SMALL)]
    other = [(0, MIDDLE)]
    lines = kart_count_table(
        [info("abyss", ["tux", "gnu", "xue"], two, other), info("abyss", ["tux"], [], [(0, SMALL)])]
    )
    assert row_of(lines, "drawn, %") == "50.0 25.0 25.0 0.0 0.0 0.0 0.0 0.0".split()
    assert float(row_of(lines, "course, %")[1]) == pytest.approx(60.6, abs=0.05)


def test_views_with_many_karts_are_in_the_last_column():
    crowd = [(kart, [60 * kart, 0, 60 * kart + 40, 40]) for kart in range(9)]
    assert row_of(kart_count_table([info("abyss", list(KARTS[:9]), crowd)]), "drawn, %")[-1] == "100.0"


def test_coverage_counts_camera_targets_only():
    infos = [info("abyss", ["tux", "gnu", "xue"], [], []), info("abyss", ["tux"], [])]
    line = coverage_line(infos, ["abyss", "xr591"], ["tux", "gnu", "xue"])
    assert line == "kart-track combinations: 6, each with 0 to 2 views, 4 with none"


def test_coverage_includes_tracks_outside_the_settings():
    assert "1 to 1 views, 0 with none" in coverage_line([info("xr591", ["tux"], [])], [], [])


def test_a_folder_prints_its_tables(tmp_path, capsys):
    records = [record(number, TRACKS[number]) for number in range(12)]
    settings = {"tracks": ["abyss"], "karts": ["tux", "gnu"]}
    stats(make_folder(tmp_path, records, [info("abyss", ["tux"], [(0, MIDDLE)])], settings))
    text = capsys.readouterr().out
    assert "kart-track combinations: 2, each with 0 to 1 views, 1 with none" in text
    assert row_of(text.splitlines(), "all")[:3] == ["12", "24", "120"]


def test_without_settings_coverage_is_over_the_whole_game(tmp_path, capsys):
    stats(make_folder(tmp_path, [record(0, "abyss")], [info("abyss", ["tux"], [(0, MIDDLE)])]))
    assert f"kart-track combinations: {len(TRACKS) * len(KARTS)}," in capsys.readouterr().out


def test_frames_without_records_have_their_labels_summarised(tmp_path, capsys):
    stats(make_folder(tmp_path, [], [info("abyss", ["tux"], [(0, MIDDLE)])]))
    printed = capsys.readouterr().out
    assert row_of(printed.splitlines(), "drawn, %")[:2] == ["0.0", "100.0"] and "views per CPU s" not in printed


def test_a_folder_without_frames_is_a_one_line_error(tmp_path, call):
    assert_one_line_error(call([stats], "stats", tmp_path), tmp_path.name)


def test_a_missing_folder_is_a_one_line_error(tmp_path, call):
    assert_one_line_error(call([stats], "stats", tmp_path / "none"), "none")
