"""Run the page's server in a process, and a headless browser to open it in."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[3]
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")  # lists text that is hard to read
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
TIMEOUT_MS = 240_000  # long, since other processes may slow the machine down
VIEW = "00001_03"  # in sample/valid, with two eligible karts
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Server:
    """A running `viewer explore`.

    Args:
        seconds, cpu_seconds: wall-clock and CPU time until its page loaded.
    """

    url: str
    process: subprocess.Popen
    seconds: float
    cpu_seconds: float


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process; infinite if the system does not report it."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float("inf")


@contextlib.contextmanager
def serving(*flags) -> Iterator[Server]:
    """Run the command with these flags on a free port until the end of the block."""
    command = [sys.executable, "-m", "viewer", "explore", "--port", "0", *map(str, flags)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        with urllib.request.urlopen(url) as response:
            assert b"<title>" in response.read()
        yield Server(url, process, time.perf_counter() - start, cpu_seconds(process.pid))
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does until the end of the block; yield its address."""

    class Handler(SimpleHTTPRequestHandler):
        log_message = lambda *_: None

    class Server(ThreadingHTTPServer):
        handle_error = lambda *_: None  # a closed page may have requests under way

    with Server(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def launch(playwright):
    """Launch a headless Chromium, the system's or playwright's; return None without one."""
    found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    return playwright.chromium.launch(executable_path=found, args=FLAGS) if Path(found).exists() else None


def open_page(page, server: Server, key: str = VIEW):
    """Open a view and wait for the models."""
    from playwright.sync_api import expect

    page.goto(f"{server.url}/#valid/{key}")
    expect(page.locator("#ask")).to_be_enabled()
    expect(page.locator("#compare")).to_be_enabled()
    return page


def wait_for_descending(page, selector: str, minimum: int) -> None:
    """Wait until the numbers that texts begin with do not grow, and the first is at least `minimum`."""
    page.wait_for_function(
        """([selector, minimum]) => {
            const numbers = [...document.querySelectorAll(selector)].map((part) => parseInt(part.textContent));
            return numbers[0] >= minimum && numbers.every((number, i) => i === 0 || number <= numbers[i - 1]);
        }""",
        arg=[selector, minimum],
    )
