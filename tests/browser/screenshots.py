"""The pictures of docs/: `python -m tests.browser.screenshots report/index.html`, of what `viewer report` wrote."""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from .driving import PATIENCE, ROOT, launch, serving

DOCS = ROOT / "docs"
COLOURS = 96  # of a picture: half of the bytes, and no difference to the eye


def main(report: Path) -> None:
    """The page to explore with an answer and compared captions, and the top of a report."""
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(PATIENCE)
        with serving("--data", ROOT / "sample") as server:
            page.goto(f"{server.url}/#valid/00001_03")
            expect(page.locator("#pairs td:nth-child(3):not(:empty)")).to_have_count(10)
            page.fill("#question", "What track is this?")
            page.click("#ask")
            expect(page.locator("#answer")).to_contain_text("% sure")
            page.click("#compare")
            expect(page.locator("#compared tr")).to_have_count(5)
            save(page, DOCS / "explore.png")
        page.set_viewport_size({"width": 1000, "height": 1400})
        page.goto(report.resolve().as_uri())
        for title in (
            "What is taken for what",
            "Answers that agree",
            "Training",
        ):  # less to see than in the cards
            page.locator("section", has=page.get_by_role("heading", name=title)).evaluate("it => it.remove()")
        save(page, DOCS / "report.png")
        browser.close()


def save(page, file: Path) -> None:
    """What is seen of a page, as a PNG of few colours."""
    page.mouse.move(0, 0)
    page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"saved {file} ({file.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
