"""Take the screenshots of docs/: `python -m tests.e2e.browser.screenshots [report/index.html]`."""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from .driving import ROOT, TIMEOUT_MS, launch, serving

DOCS = ROOT / "docs"
MAX_BYTES = 300_000  # a larger screenshot is reduced to 256 colours


def main(report: Path | None) -> None:
    """Take screenshots of the explorer, and of the top of a report if one is given."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(TIMEOUT_MS)
        show_explore(page)
        if report:
            show_report(page, report)
        browser.close()


def show_explore(page) -> None:
    """Show a view with an answer and compared captions."""
    with serving("--data", ROOT / "sample") as server:
        page.goto(f"{server.url}/#valid/00001_03")
        expect(page.locator("#pairs td:nth-child(3):not(:empty)")).to_have_count(10)
        page.fill("#question", "What track is this?")
        page.click("#ask")
        expect(page.locator("#answer")).to_contain_text("confidence ")
        expect(page.locator("#compare")).to_be_enabled()
        page.click("#compare")
        expect(page.locator("#compared tr")).to_have_count(5)
        save(page, DOCS / "explore.png")


def show_report(page, report: Path) -> None:
    """Show the top of a report, without some sections, so that cards are visible."""
    page.set_viewport_size({"width": 1000, "height": 1400})
    page.goto(report.resolve().as_uri())
    for title in ("Confusion matrices", "Consistency", "Training curves"):
        page.locator("section", has=page.get_by_role("heading", name=title)).evaluate("it => it.remove()")
    save(page, DOCS / "report.png")


def save(page, file: Path) -> None:
    """Save the visible part of a page as a PNG."""
    page.mouse.move(0, 0)
    page.screenshot(path=file)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.save(file, optimize=True)
    if file.stat().st_size > MAX_BYTES:
        image.quantize(256).save(file, optimize=True)
    print(f"saved {file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
