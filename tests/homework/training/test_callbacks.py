"""Test training.callbacks: an interrupted run saves its step; logs for people, programs and trackers."""

import json
import logging
import os
import pty
import re
import signal
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from types import SimpleNamespace

import pytest

from homework import clip, finetune
from homework.models.runs import last_checkpoint
from homework.training import callbacks, trainer
from homework.utils.errors import InputError, UsageError
from tests.conftest import heed_ctrl_c
from tests.homework.test_finetune import assert_same_weights, train

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _restore_handlers():
    """Python's own handlers, whatever runs the tests."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt_at_step(monkeypatch, step: int, signals: list[int]) -> None:
    """Send signals to this process during a step."""
    real, steps = trainer.AdapterTrainer.training_step, []

    def training_step(self, *arguments, **options):
        steps.append(self.state.global_step)
        if len(steps) == step:
            for number in signals:
                signal.raise_signal(number)
        return real(self, *arguments, **options)

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", training_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_at_its_step(nano_folder, no_progress, tmp_path, monkeypatch, caplog, number):
    """Step 3 of 4 is saved, though only every second one would be; the result is that of an uninterrupted run."""
    expected = train(nano_folder, no_progress, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="same command resumes at step 3 of 4"):
        interrupt_at_step(patch, 3, [number])
        train(nano_folder, no_progress, tmp_path / "cut")
    assert not (tmp_path / "cut/vlm").exists()
    with caplog.at_level(logging.INFO, "homework"):
        resumed = train(nano_folder, no_progress, tmp_path / "cut")
    assert any(text.startswith("resuming at step 3 of 4, from ") for text in caplog.messages)
    assert_same_weights(expected, resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut/run" / callbacks.LOG_FILE).read_text().splitlines()]
    assert steps == sorted(steps) and steps.count(4) == 2  # the loss, and the summary


def test_a_second_ctrl_c_ends_at_once(nano_folder, no_progress, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="resumes at step 2 of 4"):
        interrupt_at_step(patch, 3, [signal.SIGINT, signal.SIGINT])
        train(nano_folder, no_progress, tmp_path)
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"


def test_ctrl_c_in_the_last_step_finishes_the_run(nano_folder, no_progress, tmp_path, monkeypatch):
    interrupt_at_step(monkeypatch, 4, [signal.SIGINT])
    assert (train(nano_folder, no_progress, tmp_path) / "training.json").exists()


def test_a_run_that_was_killed_after_its_last_step_trains_no_further(nano_folder, no_progress, tmp_path, monkeypatch):
    expected = train(nano_folder, no_progress, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(trainer, "save_adapter_atomically", lambda *_: (_ for _ in ()).throw(OSError))
        train(nano_folder, no_progress, tmp_path / "cut")
    assert last_checkpoint(tmp_path / "cut/run").name == "checkpoint-4"
    resumed = train(nano_folder, no_progress, tmp_path / "cut")
    assert_same_weights(expected, resumed)
    assert max(row["step"] for row in json.loads((resumed / "training.json").read_text())["curve"]) == 4


def test_a_run_without_a_saved_step_does_not_claim_one(nano_folder, no_progress, tmp_path, monkeypatch):
    interrupt_at_step(monkeypatch, 1, [signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt, match="no step is saved yet; the same command starts again"):
        train(nano_folder, no_progress, tmp_path)


def test_a_terminal_shows_a_live_line_and_a_table(nano_folder, with_progress, tmp_path):
    """Step, loss, rate and time left in one line; a row per evaluation; before, after, time and the next command."""
    parent, child = pty.openpty()
    ioctl(child, TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    flags = (
        f"--base {nano_folder} --data {with_progress} --output {tmp_path}/vlm --steps 8 --batch-size 2 --rank 2".split()
    )
    command = [sys.executable, "-m", "homework.finetune", "train", *flags, "--progress-questions", "5"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=child, stderr=child, preexec_fn=heed_ctrl_c)
    os.close(child)
    text = b""
    try:
        while block := os.read(parent, 65536):
            text += block
    except OSError:  # the process has closed the terminal
        pass
    assert process.wait() == 0, text
    lines = text.decode().replace("\r", "\n").splitlines()
    live = [line for line in lines if line.startswith("training: ") and "8/8" in line][-1]
    assert "loss" in live and "<00:00" in live and ("step/s" in live or "s/step" in live)
    names = next(line.split() for line in lines if "accuracy" in line and "step" in line and "loss" in line)
    assert names[:3] == ["step", "loss", "accuracy"] and names[-2:] == ["time", "left"]
    rows = [line.split() for line in lines if len(line.split()) >= len(names) - 2 and line.split()[0].isdecimal()]
    assert [row[0] for row in rows] == ["0", "2", "4", "6", "8"]
    assert all(re.fullmatch(r"\d:\d\d:\d\d", row[-1]) for row in rows) and rows[-1][-1] == "0:00:00"
    assert len(rows[0]) == len(names) - 2  # before the first step, there is neither a loss nor an estimate
    ends = [line for line in lines if line.strip()][-2:]
    assert "; the loss " in ends[0] and "accuracy before " in ends[0] and ends[0].startswith("trained in 0:0")
    assert ends[1].endswith(f"next: python -m homework.finetune test {tmp_path}/vlm")
    rows = [json.loads(line) for line in (tmp_path / "vlm-run" / callbacks.LOG_FILE).read_text().splitlines()]
    assert rows == json.loads((tmp_path / "vlm/training.json").read_text())["curve"]


def test_the_time_left_is_that_of_the_steps_so_far(monkeypatch, caplog):
    """Ten seconds for two of eight steps, evaluations included, leave thirty; each row says how many."""
    clock, display = [100.0], callbacks.Display()
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock[0])
    state = SimpleNamespace(is_world_process_zero=True, max_steps=8, global_step=0)
    control = SimpleNamespace()
    with caplog.at_level(logging.INFO, "homework"):
        display.on_train_begin(None, state, control)
        clock[0] += 50  # the evaluation before the first step, which is not repeated
        display.on_evaluate(None, state, control, metrics={})
        for step in range(1, 3):
            display.on_step_begin(None, state, control)
            clock[0] += 4
            state.global_step = step
            display.on_step_end(None, state, control)
        clock[0] += 2
        display.on_evaluate(None, state, control, metrics={})
    header, first, *_, last = [message.split() for message in caplog.messages]
    assert header == ["step", "loss", "time", "left"] and first == ["0", "0:00:50"]
    assert last == ["2", "0:01:00", "0:00:30"]


@pytest.mark.parametrize("module", [finetune, clip])
def test_trackers_and_folders_are_checked_before_the_data(tmp_path, module, monkeypatch):
    """One line with the remedy, though there is no data either."""
    (tmp_path / "file").touch()
    settings = {"data": str(tmp_path / "none"), "output": str(tmp_path / "out")}
    monkeypatch.setitem(callbacks.INTEGRATION_TO_CALLBACK, "nottracking", None)
    with pytest.raises(UsageError, match="nottracking is not installed; run `pip install nottracking`"):
        module.train(**settings, report_to="nottracking")
    with pytest.raises(UsageError, match="cannot report to noone; choose trackio .*or wandb"):
        module.train(**settings, report_to="noone")
    with pytest.raises(InputError, match="file: is a file, expected a folder; choose another --run-dir"):
        module.train(**settings, run_dir=str(tmp_path / "file"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
