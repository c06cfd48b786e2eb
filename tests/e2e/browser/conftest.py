"""Fixtures: a browser, its pages, and the servers that they open."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TRACKS, write_frame

from .driving import PATIENCE, ROOT, launch, serving


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
    with sync_api.sync_playwright() as playwright:
        browser = launch(playwright)
        if browser is None:
            no_browser = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            no_browser("no browser found. Run `apt install chromium` or `python -m playwright install chromium`")
        sync_api.expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """Open a page of 1280x800; finally, expect no errors in it except requests refused on purpose."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(PATIENCE)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    yield page
    context.close()
    assert [line for line in wrong if "the server responded with a status of" not in line] == []


@pytest.fixture(scope="session")
def server(sample_data):
    """Serve the sample's frames with the shipped models."""
    with serving("--data", sample_data) as server:
        yield server


@pytest.fixture(scope="session")
def bare_server(small_data):
    """Serve without any model."""
    with serving("--data", small_data, "--checkpoint", "nowhere/vlm", "--clip", "nowhere/clip") as server:
        yield server


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """Write one frame to train on, and as many to evaluate on as CLIP's questions need."""
    data = tmp_path_factory.mktemp("data")
    for number in range(24):
        write_frame(data / "valid", f"{number:05x}", list(TRACKS)[number % 5], shift=number)
    write_frame(data / "train", "00000", "abyss")
    return data


@pytest.fixture(scope="session")
def report(small_data, tmp_path_factory) -> Path:
    """Return the page that `viewer report` writes."""
    output = tmp_path_factory.mktemp("report")
    command = [sys.executable, "-m", "viewer", "report", "homework/weights/vlm", "--data", small_data]
    subprocess.run([*command, "--output", output], cwd=ROOT, check=True, capture_output=True)
    return output / "index.html"
