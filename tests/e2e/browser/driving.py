"""The page's server in a process of its own, and a headless browser to open it in."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 240_000  # ms; a machine that trains beside the tests is slow
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Server:
    """`viewer explore`, running.

    Args:
        seconds, own_seconds: until its page came, on the clock, and of the processors for this process alone.
    """

    url: str
    process: subprocess.Popen
    seconds: float
    own_seconds: float


def processor_seconds(pid: int) -> float:
    """What a process has had of the processors; infinite where the system doesn't say."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float("inf")


@contextlib.contextmanager
def serving(*flags) -> Iterator[Server]:
    """The command with these flags on a free port, until the end of the block."""
    command = [sys.executable, "-m", "viewer", "explore", "--port", "0", *map(str, flags)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with urllib.request.urlopen(url) as response:
            assert b"<title>" in response.read()
        yield Server(url, process, time.perf_counter() - start, processor_seconds(process.pid))
    finally:
        process.kill()
        process.wait()


def launch(playwright):
    """A headless Chromium with a profile of its own: the system's, else playwright's; None without one."""
    found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    return playwright.chromium.launch(executable_path=found, args=FLAGS) if Path(found).exists() else None
