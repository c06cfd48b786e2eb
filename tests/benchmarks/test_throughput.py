"""Test benchmarks.throughput: one rate per workload."""

import pytest

from benchmarks import throughput
from homework.base_vlm import BaseVLM


def test_throughput_prints_every_rate(nano_folder, tiny_data, monkeypatch, capsys):
    """With a tiny base every rate is positive."""
    monkeypatch.setattr("homework.models.loading.DEFAULT_BASE", str(nano_folder))
    monkeypatch.setattr("homework.load_vlm", lambda: BaseVLM(nano_folder), raising=False)
    throughput.main(tiny_data, repetitions=1, batch_size=2, steps=1)
    table = capsys.readouterr().out.partition("highest\n")[2]
    rates = [float(line.split()[-3].replace(",", "")) for line in table.splitlines()]
    assert len(rates) == 4 and all(rate > 0 for rate in rates), table


def test_steps_are_timed_from_one_forward_pass_to_the_next():
    """The first step is a warm-up, and the last has no end."""
    timer = throughput.StepTimer(count=lambda batch: batch["size"])
    for size in (1, 2, 3, 4):
        timer(None, (), {"size": size})
    timer.starts = [0.0, 10.0, 11.0, 13.0]
    assert timer.rates() == pytest.approx([2.0, 1.5])
