"""benchmarks.throughput: a number for each kind of work; benchmarks.scaling: how it grows."""

import re

from benchmarks import scaling
from benchmarks import throughput as speed
from homework.utils.io import read_json


def test_speed_prints_every_rate(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """One step of each, with a tiny base; the file has what the screen has."""
    for name, value in {"STEPS": 1, "WARM_UP": 0, "ANSWERED": 2, "DEFAULT_BASE": str(nano_folder)}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "DEFAULT_CHECKPOINT", tmp_path)
    speed.speed(tiny_data, repetitions=1, batch_size=2, rank=2, json_=tmp_path / "speed.json")
    told, printed = read_json(tmp_path / "speed.json"), capsys.readouterr().out
    assert len(told["a_second"]) == 5
    for name, measured in told["a_second"].items():
        assert measured["median"] > 0 and name in printed


def test_growth_is_printed_and_plotted(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """A step's time for each amount of views, questions, cells and cores, with a tiny base."""
    amounts = {"VIEWS": (1, 2), "QUESTIONS": (1, 2), "WIDTHS": (100, 150), "BATCH": 2, "SIDE": 64, "RANK": 2}
    for name, value in (amounts | {"DEFAULT_BASE": str(nano_folder)}).items():
        monkeypatch.setattr(scaling, name, value)
    scaling.run(data=tiny_data, repetitions=1, output=tmp_path / "growth.svg")
    printed = capsys.readouterr().out
    assert "views in a batch: 1: " in printed and re.search(r"cells of a view, 2 views: 49: .* s, 70: .* s", printed)
    assert (tmp_path / "growth.svg").read_text().count('<g id="axes_') == 4
