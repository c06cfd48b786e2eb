"""Fixtures of the hostile bundles: data, the objects of others, and the systems they are tried on."""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from grader import process
from grader.runner import probe_sandbox
from grader.sandbox import landlock
from tests.fake_bundle import ROOT, write_data, write_package

NOBODY = 65534
IPC_RMID, IPC_CREAT = 0, 0o1000
# Versions of Landlock's ABI: 2 truncates, 4 permits ioctl on devices, 5 signals and abstract sockets.
VERSIONS = (None, 2, 4, 5)  # None: that of this kernel
SYSTEMS = [(user, version) for user in ("own", "nobody") for version in VERSIONS]


@pytest.fixture(scope="module")
def place():
    """A folder that all users can read, with data, a good package, and a folder that a bundle must not touch."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        root = Path(name)
        root.chmod(0o755)
        write_data(root)
        (root / "outside").mkdir()
        (root / "outside" / "old").write_text("old")
        write_package(root / "good")
        yield root


@pytest.fixture(scope="module")
def system_objects():
    """Make a semaphore set, a message queue and a shared segment of System V; check that they still exist."""
    libc = ctypes.CDLL(None)
    ids = libc.semget(0, 1, IPC_CREAT | 0o666), libc.msgget(0, IPC_CREAT | 0o666), libc.shmget(0, 1, IPC_CREAT | 0o666)
    assert min(ids) >= 0
    yield ids
    semaphore, queue, segment = ids
    removed = libc.semctl(semaphore, 0, IPC_RMID), libc.msgctl(queue, IPC_RMID, 0), libc.shmctl(segment, IPC_RMID, 0)
    assert removed == (0, 0, 0)


@functools.cache
def find_common_python() -> str | None:
    """Return a Python of 3.11 or newer that `nobody` can start, None if there is none."""
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):  # none there, or in a folder of root's
            if subprocess.run([python, "-c", code], cwd="/", user=NOBODY, group=NOBODY).returncode == 0:
                return python
    return None


@pytest.fixture(
    params=[
        pytest.param(system, marks=pytest.mark.slow if any(system[1:]) or system[0] == "nobody" else ())
        for system in SYSTEMS
    ],
    ids=lambda system: f"{system[0]}-{system[1] or 'newest'}",
)
def setting(request, monkeypatch):
    """Pretend an older kernel, or run workers as `nobody`; return more arguments of `run_part`."""
    user, version = request.param
    if version:
        if landlock.find_abi_version() < version:
            pytest.skip(f"this kernel's Landlock is older than ABI {version}")
        monkeypatch.setattr(landlock, "find_abi_version", lambda: version)
    if user == "own":
        yield {}
        return
    if os.geteuid() or not find_common_python():
        pytest.skip("needs root, to run workers as nobody, and a Python 3.11 or newer that all users can read")
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        os.chmod(name, 0o755)
        shutil.copytree(ROOT / "grader", Path(name, "grader"))
        monkeypatch.setattr(process, "WORKER_SCRIPT", Path(name, "grader", "worker.py"))
        as_nobody = functools.partial(subprocess.Popen, user=NOBODY, group=NOBODY, extra_groups=[])
        monkeypatch.setattr(subprocess, "Popen", as_nobody)
        probe_sandbox.cache_clear()
        yield {"python": find_common_python()}
        probe_sandbox.cache_clear()
