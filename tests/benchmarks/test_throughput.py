"""Test benchmarks.throughput: one rate per workload."""

import pytest

from benchmarks import throughput
from homework.base_vlm import BaseVLM
from homework.utils.io import read_json


def test_throughput_prints_every_rate(nano_folder, tiny_data, tmp_path, monkeypatch, capsys):
    """With a tiny base every rate is positive, and the file has what the screen has."""
    monkeypatch.setattr("homework.models.loading.DEFAULT_BASE", str(nano_folder))
    monkeypatch.setattr("homework.load_vlm", lambda: BaseVLM(nano_folder), raising=False)
    throughput.main(tiny_data, repetitions=1, batch_size=2, steps=1, output=tmp_path / "results.json")
    results, printed = read_json(tmp_path / "results.json"), capsys.readouterr().out
    assert len(results["per_second"]) == 5
    for name, rates in results["per_second"].items():
        assert len(rates) == 1 and rates[0] > 0 and name in printed


def test_steps_are_timed_from_one_forward_pass_to_the_next():
    """The first step is a warm-up, and the last has no end."""
    timer = throughput.StepTimer(count=lambda batch: batch["size"])
    for size in (1, 2, 3, 4):
        timer(None, (), {"size": size})
    timer.starts = [0.0, 10.0, 11.0, 13.0]
    assert timer.rates() == pytest.approx([2.0, 1.5])
