"""benchmarks.speed: a number for each kind of work."""

from benchmarks import speed
from homework.errors import read_json


def test_speed_prints_every_rate(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """One step of each, with a tiny base; the file has what the screen has."""
    for name, value in {"STEPS": 1, "WARM_UP": 0, "ANSWERED": 2, "EMBEDDED_BASE": str(nano_folder)}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "SHIPPED", tmp_path)
    speed.speed(tiny_data, repetitions=1, batch_size=2, clip_batch_size=2, rank=2, json_=tmp_path / "speed.json")
    told, printed = read_json(tmp_path / "speed.json"), capsys.readouterr().out
    assert len(told["a_second"]) == 5
    for name, measured in told["a_second"].items():
        assert measured["median"] > 0 and name in printed
