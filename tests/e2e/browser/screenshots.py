"""The pictures of docs/: `python -m tests.browser.screenshots [report/index.html]`, of what `viewer report` wrote."""

import contextlib
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from supertux.sample import use_sample

from .driving import PATIENCE, ROOT, launch, serving

DOCS = ROOT / "docs"
MOST_BYTES = 300_000  # of a picture; a larger one is reduced to 256 colours


def main(report: Path | None) -> None:
    """The page to explore, and the top of a report if there is one."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PATIENCE)
        show_explore(page)
        if report:
            show_report(page, report)
        browser.close()


def show_explore(page) -> None:
    """A view with an answer and compared captions."""
    with tempfile.TemporaryDirectory() as data, contextlib.ExitStack() as stack:
        use_sample(data=Path(data))
        server = stack.enter_context(serving("--data", data))
        page.goto(f"{server.url}/#valid/00001_03")
        expect(page.locator("#pairs td:nth-child(3):not(:empty)")).to_have_count(10)
        page.fill("#question", "What track is this?")
        page.click("#ask")
        expect(page.locator("#answer")).to_contain_text("% sure")
        expect(page.locator("#compare")).to_be_enabled()
        page.click("#compare")
        expect(page.locator("#compared tr")).to_have_count(5)
        save(page, DOCS / "explore.png")


def show_report(page, report: Path) -> None:
    """Its top, without some parts, so that the cards are seen."""
    page.set_viewport_size({"width": 1000, "height": 1400})
    page.goto(report.resolve().as_uri())
    for title in ("What is taken for what", "Answers that agree", "Training"):
        page.locator("section", has=page.get_by_role("heading", name=title)).evaluate("it => it.remove()")
    save(page, DOCS / "report.png")


def save(page, file: Path) -> None:
    """What is seen of a page, as a PNG."""
    page.mouse.move(0, 0)
    page.screenshot(path=file)
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    picture.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        picture.quantize(256).save(file, optimize=True)
    print(f"saved {file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
