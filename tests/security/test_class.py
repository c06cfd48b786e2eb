"""Grade a class of 300 small bundles, one in ten hostile; `pytest -m slow -s` prints its table."""

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median

import pytest

from grader.runner import probe_sandbox
from tests.fake_bundle import ROOT, grader_command, write_data, write_package, write_zip

from .bundles import CASES, PRELUDE
from .test_hostile import find_processes
from .zips import REFUSED

NUM_BUNDLES, NUM_PER_ROW, WORKERS, TIMEOUT_SECONDS = 300, 100, 2, 20
NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch
# Each hundred has each of these once. None waits for the time limit, which would hide the time of the others.
HOSTILE_CODE = ("deep_json", "os_exit", "segfault", "fork_bomb_in_c", "thread_bomb", "closes_everything")
HOSTILE_CODE += ("exit_while_answering",)
HOSTILE_ZIPS = ("bomb", "deep_name", "bomb_with_false_size")


def write_class(folder: Path) -> Path:
    """Write bundles that differ; the names of hostile ones begin with `bad`."""
    bundles = folder / "bundles"
    bundles.mkdir()
    prelude = PRELUDE.format(outside="", answers="", home="") + NO_CLIP
    kinds = (*HOSTILE_CODE, *HOSTILE_ZIPS)
    for number in range(NUM_BUNDLES):
        kind = kinds[number // 10 % len(kinds)] if number % 10 == 5 else None
        code = CASES[kind][0] if kind in HOSTILE_CODE else ""
        package = write_package(folder / "packages" / str(number), f"{prelude}{code}\n# {number}")
        path = bundles / (f"{number:03}_bad_{kind}.zip" if kind else f"{number:03}_good.zip")
        REFUSED[kind][0](path, package) if kind in HOSTILE_ZIPS else write_zip(path, package)
    return bundles


def measure(pid: int) -> tuple[float, float, float, int]:
    """Return a grader's time, CPU seconds with those of its ended children, resident MB and open files."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    memory = int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return time.monotonic(), cpu, memory, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.skipif(bool(probe_sandbox().unenforced), reason="this system does not enforce every limit")
def test_a_class_of_300(tmp_path):
    """Every honest bundle has its points; nothing grows, and nothing is left behind."""
    data, bundles = write_data(tmp_path), write_class(tmp_path)
    (tmp_path / "temporary").mkdir()
    flags = ("--workers", WORKERS, "--timeout", TIMEOUT_SECONDS, "--json", tmp_path / "report.json")
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    grader = subprocess.Popen(grader_command(bundles, data, *flags), cwd=ROOT, env=environment, **streams)
    shared, states = set(os.listdir("/dev/shm")), []
    for line in grader.stderr:
        if ".zip: " in line:
            states.append(measure(grader.pid))
    assert grader.wait() == 1
    reports = json.loads((tmp_path / "report.json").read_text())
    points = {Path(report["bundle"]).name: report["total"] for report in reports}
    assert len(states) == len(points) == NUM_BUNDLES
    assert {name: total for name, total in points.items() if total != (0 if "_bad_" in name else 50)} == {}
    assert list((tmp_path / "temporary").iterdir()) == [] and not find_processes(tmp_path)
    assert set(os.listdir("/dev/shm")) <= shared

    rows = []
    for first in range(0, NUM_BUNDLES, NUM_PER_ROW):
        begin, end = states[max(0, first - 1)], states[first + NUM_PER_ROW - 1]
        wall, cpu = ((end[index] - begin[index]) / (NUM_PER_ROW - (first == 0)) for index in (0, 1))
        part = states[first:][:NUM_PER_ROW]
        # the median, as a bundle that is being unpacked takes memory for a moment
        rows.append((wall, cpu, median(state[2] for state in part), max(state[3] for state in part)))
    print("\n| bundles | s per bundle | CPU s per bundle | grader's memory, MB | open files |")
    print("| --- | --- | --- | --- | --- |")
    for number, (wall, cpu, memory, files) in enumerate(rows):
        last = (number + 1) * NUM_PER_ROW
        print(f"| {last - NUM_PER_ROW + 1} to {last} | {wall:.2f} | {cpu:.2f} | {memory:.1f} | {files} |")
    # CPU time, as other jobs of a machine change the other; it varies by a tenth from run to run
    assert rows[-1][1] <= 1.3 * rows[0][1] and rows[-1][2] <= 1.1 * rows[0][2], rows
    assert rows[-1][3] < rows[0][3] + 10
