"""Take the screenshots of docs/: `python -m tests.e2e.browser.screenshots [report/index.html [web]]`."""

import contextlib
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from supertux.sample import use_sample

from .driving import ROOT, TIMEOUT_MS, hosting, launch, open_page, serving, wait_for_descending

DOCS = ROOT / "docs"
NUM_CHECKED = 100  # views
MAX_IMAGE_BYTES = 300_000  # larger screenshots are reduced to 256 colours


def main(report: Path | None = None, web: Path | None = None) -> None:
    """Save the explorer, and the top of a report and the exported page if they are given."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(TIMEOUT_MS)
        show_explore(page)
        if report:
            show_report(page, report)
        if web:
            show_web(page, web)
        browser.close()


def show_explore(page) -> None:
    """Save a view with an answer and ranked captions, and the grid with the most wrong of some answered views first."""
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        use_sample(data=Path(data))
        server = stack.enter_context(serving("--data", data))
        page.set_viewport_size({"width": 1280, "height": 1072})
        open_page(page, server)
        expect(page.locator("#pairs .given .correct, #pairs .given .wrong")).to_have_count(10)
        page.click("text=What track is this?")
        expect(page.locator("#answer")).to_contain_text("confidence ")
        page.click("#compare")
        expect(page.locator("#compared tr")).to_have_count(5)
        save(page, DOCS / "explore.png")
        page.set_viewport_size({"width": 1280, "height": 720})
        page.goto(f"{server.url}/#valid")
        page.click("#check")
        page.wait_for_function("n => document.querySelector('#checking').value >= n", arg=NUM_CHECKED)
        page.select_option("#sort", "errors")
        wait_for_descending(page, "#grid .text-bg-danger", 4)
        page.wait_for_function("() => [...document.images].slice(0, 25).every((image) => image.naturalWidth)")
        save(page, DOCS / "explore-grid.png")


def show_report(page, report: Path) -> None:
    """Save the first screen of a report."""
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(report.resolve().as_uri())
    save(page, DOCS / "report.png")


def show_web(page, web: Path) -> None:
    """Save the page of `export web` with an example picture and ranked captions."""
    page.set_viewport_size({"width": 1280, "height": 1010})
    with hosting(web) as url:
        page.goto(url)
        page.locator("#examples button").first.click()
        expect(page.locator("#answers tr")).to_have_count(5)
        page.click("#comparing button")
        expect(page.locator("#compared tr")).to_have_count(5)
        save(page, DOCS / "web.png")


def save(page, file: Path) -> None:
    """Save the visible part of a page as PNG."""
    page.mouse.move(0, 0)
    page.screenshot(path=file)
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    picture.save(file, optimize=True)
    if file.stat().st_size > MAX_IMAGE_BYTES:
        picture.quantize(256).save(file, optimize=True)
    print(f"saved {file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
