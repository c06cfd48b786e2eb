"""Test viewer report as a user sees it: the page of the shipped models in a headless browser."""

import pytest

from .driving import CONTRAST

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
expect = sync_api.expect
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_opens_from_a_file(page, report, scheme):
    """It fetches nothing, raises no error, and is legible, on a narrow screen too."""
    page.emulate_media(color_scheme=scheme)
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(report.as_uri())
    for part in (".verdict", ".bars >> nth=1", ".six >> nth=0", ".six article >> nth=-1"):
        expect(page.locator(part)).to_be_in_viewport()  # all of the first screen
    expect(page.locator("section h2").first).to_have_text("Question types")
    assert {url for url in urls if not url.startswith("data:")} == {report.as_uri()}
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 26)"
    assert dark == (scheme == "dark")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    names = page.locator(".cards text").evaluate_all("all => all.map(it => it.getBoundingClientRect().height)")
    assert min(names) > 10  # legible


def test_boxes_can_be_switched_off(page, report):
    """One switch hides the boxes and names of all pictures."""
    page.goto(report.as_uri())
    expect(page.locator(".boxes").first).to_be_visible()
    page.get_by_label("boxes").uncheck()
    expect(page.locator(".boxes:visible")).to_have_count(0)


def test_a_click_enlarges_a_picture(page, report):
    """Arrow keys show the next and the previous one, Esc and a click close it."""
    page.goto(report.as_uri())
    cards, dialog = page.locator("main article"), page.locator("dialog")
    small = cards.nth(6).locator("svg").first.bounding_box()["width"]
    for close in (lambda: page.keyboard.press("Escape"), dialog.click):
        cards.nth(6).locator(".pictures").click()
        for key, number in ((None, 6), ("ArrowRight", 7), ("ArrowLeft", 6)):
            if key:
                page.keyboard.press(key)
            expect(dialog.locator(".note")).to_have_text(cards.nth(number).locator(".note").inner_text())
        assert dialog.locator("svg").first.bounding_box()["width"] > 1.5 * small
        close()
        expect(dialog).to_be_hidden()


def test_contents_jump_below_the_bar(page, report):
    """A section's heading is not hidden by the bar of the contents."""
    page.goto(report.as_uri())
    page.locator("nav a", has_text="Errors by cause").click()
    heading, bar = (page.locator(part).bounding_box() for part in ("#errors h2", "nav"))
    assert bar["y"] == 0 and bar["height"] <= heading["y"] < 200
