"""Fixtures: a browser, its pages, and the servers that they open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TRACKS, write_frame

from .driving import ROOT, TIMEOUT_MS, launch, serving


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
    with sync_api.sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            no_browser = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            no_browser("no browser found. Run `apt install chromium` or `python -m playwright install chromium`")
        sync_api.expect.set_options(timeout=TIMEOUT_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """Open a page of 1280x800; at the end it must have logged no error but rejected requests."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(TIMEOUT_MS)
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    yield page
    context.close()
    assert [line for line in problems if "the server responded with a status of" not in line] == []


@pytest.fixture(scope="session")
def server(sample_data):
    """Serve the sample's frames with the shipped models."""
    with serving("--data", sample_data) as server:
        yield server


@pytest.fixture(scope="session")
def bare_server(small_data):
    """Serve without models."""
    with serving("--data", small_data, "--checkpoint", "nowhere/vlm", "--clip", "nowhere/clip") as server:
        yield server


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Write a frame to train on, and enough to evaluate on for CLIP's questions."""
    data = tmp_path_factory.mktemp("data")
    for number in range(24):
        write_frame(data / "valid", f"{number:05x}", list(TRACKS)[number % 5], shift=number)
    write_frame(data / "train", "00000", "abyss")
    return data


@pytest.fixture(scope="session")
def report(small_data, tmp_path_factory) -> Path:
    """Write a report with the shipped models."""
    output = tmp_path_factory.mktemp("report")
    command = [sys.executable, "-m", "viewer", "report", "homework/weights/vlm", "--data", small_data]
    subprocess.run([*command, "--output", output], cwd=ROOT, check=True, capture_output=True)
    return output / "index.html"
