"""On a full or read-only disk: one line, nothing lost, nothing incomplete; the same command succeeds later.

A child process gets a small tmpfs in its own mount namespace and runs `in_namespace.py` there.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("generate", "bundle", "download")


@cache
def why_no_mount() -> str | None:
    """Return why nothing can be mounted here, or None."""
    command = ["unshare", "-rm", "sh", "-c", "mkdir -p $0 && mount -t tmpfs -o size=1m none $0", "/tmp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "no unshare command"
    return done.stderr.strip() or "unshare refused" if done.returncode else None


def run(case: str, tmp_path: Path) -> None:
    if why_no_mount():
        pytest.skip(f"cannot mount a tmpfs; run as root or allow user namespaces: {why_no_mount()}")
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-rm", sys.executable, "-m", "tests.crash.in_namespace", case, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["case"] == case and report["checked"] == ["full", "freed", "read-only"]


@pytest.mark.parametrize("case", CASES)
def test_full_and_read_only(tmp_path: Path, case: str):
    run(case, tmp_path)


@pytest.mark.slow  # each imports torch a few times
@pytest.mark.parametrize("case", ["views", "train"])
def test_full_and_read_only_with_torch(tmp_path: Path, case: str):
    run(case, tmp_path)
