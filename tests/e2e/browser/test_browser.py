"""Test viewer explore as a user sees it: the real command in a headless browser."""

import time

import pytest

from .driving import CONTRAST, VIEW, cpu_seconds, open_page, wait_for_descending

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
expect = sync_api.expect
pytestmark = pytest.mark.slow

TRACK_QUESTION = "What track is this?"


def num_found(page) -> int:
    return int(page.locator("#found").inner_text().split()[0])


def test_it_starts_in_five_seconds_and_answers_in_one(page, server):
    """By wall-clock time, or by CPU time if other processes are running; nothing is fetched from elsewhere."""
    print(f"\nthe page loaded after {server.seconds:.2f} s, {server.cpu_seconds:.2f} s of CPU time")
    assert min(server.seconds, server.cpu_seconds) < 5
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    open_page(page, server)
    for question in (TRACK_QUESTION, TRACK_QUESTION, "Is it raining?"):  # the first is a warm-up
        page.fill("#question", question)
        before, start = cpu_seconds(server.process.pid), time.perf_counter()
        with page.expect_response("**/api/ask") as response:
            page.click("#ask")
        assert response.value.ok
        seconds, cpu = time.perf_counter() - start, cpu_seconds(server.process.pid) - before
        print(f"{question} answered after {seconds:.2f} s, {cpu:.2f} s of CPU time")
    assert min(seconds, cpu) < 1
    assert urls and not [url for url in urls if not url.startswith((server.url, "data:"))]


def test_views_are_filtered_sorted_and_opened(page, server):
    """Each filter leaves fewer cards; all can be cleared; a card opens its view and Back returns to the grid."""
    page.goto(server.url)
    found, cards = page.locator("#found"), page.locator("#grid a")
    expect(found).to_have_text("672 of 672 views")
    left = [672]
    for name, value in (("#track", "sandtrack"), ("#kart", "emule"), ("#number", "2")):
        page.select_option(name, value)
        expect(page.locator(f"{name} option:checked")).to_contain_text(value)
        expect(found).not_to_have_text(f"{left[-1]} of 672 views")
        left.append(num_found(page))
        label = page.locator(f"{name} option:checked").inner_text()
        assert label == f"{value} ({left[-1]})" and 0 < left[-1] < left[-2]
    expect(cards).to_have_count(left[-1])
    expect(cards.first).to_contain_text("sandtrack")
    cards.first.click()
    expect(page.locator("#pairs")).to_contain_text("sandtrack")
    expect(page.locator("#view")).to_contain_text("emule")
    expect(page.locator("#key")).to_contain_text(f"(1 of {left[-1]})")
    page.go_back()
    expect(cards).to_have_count(left[-1])
    page.click("#clear")
    expect(found).to_have_text("672 of 672 views")
    expect(page.locator("#clear")).to_be_hidden()
    page.select_option("#sort", "number")
    wait_for_descending(page, "#grid .text-body-secondary", 4)


def test_the_grid_loads_more_where_its_end_is_visible(page, server):
    """It does so when it is scrolled, and at once on a screen with room for more."""
    page.goto(server.url)
    cards = page.locator("#grid a")
    expect(cards).to_have_count(60)
    page.locator("#more").scroll_into_view_if_needed()
    expect(cards).to_have_count(120)
    page.set_viewport_size({"width": 1920, "height": 3000})
    page.reload()
    expect(cards.nth(150)).to_be_attached()


def test_keys_move_zoom_and_show_boxes(page, server):
    """Keys move between views, toggle boxes and zoom, but not while typing; the image is the view's."""
    page.goto(f"{server.url}/#valid/{VIEW}")
    key, image, boxes = page.locator("#key"), page.locator("#view image"), page.locator("#view rect")
    expect(key).to_have_text(f"{VIEW} (12 of 672)")
    expect(boxes).not_to_have_count(0)
    for press, shown in (("ArrowRight", "00001_04"), ("n", "00001_05"), ("ArrowLeft", "00001_04"), ("p", VIEW)):
        page.keyboard.press(press)
        expect(key).to_contain_text(shown)
        expect(image).to_have_attribute("href", f"/api/images/valid/{shown}")
    page.keyboard.press("b")
    expect(boxes).to_have_count(0)
    page.keyboard.press("b")
    expect(page.locator("#view rect.ego")).to_have_count(1)
    expect(page.locator("#view")).to_contain_text("konqi (ego)")
    page.locator("#question").press_sequentially("bn+")
    expect(key).to_contain_text(VIEW)
    expect(page.locator("#view rect.ego")).to_have_count(1)
    expect(page.locator("#view")).to_have_attribute("viewBox", "0 0 150 100")
    page.locator("h2").first.click()
    page.keyboard.press("Escape")
    expect(page.locator("#grid a").first).to_be_visible()


def test_a_view_is_zoomed_and_moved(page, server):
    """Buttons, a double click and the wheel enlarge around a point, dragging moves, and edges stay inside."""
    page.goto(f"{server.url}/#valid/{VIEW}")
    view = page.locator("#view")
    expect(view.locator("image")).to_have_count(1)

    def extent() -> list[float]:
        return [float(value) for value in view.get_attribute("viewBox").split()]

    page.click("#zoom-in")
    assert extent() == pytest.approx([25, 50 / 3, 100, 200 / 3])
    page.click("#zoom-out")
    assert extent() == [0, 0, 150, 100]
    view.dblclick(position={"x": 1, "y": 1})
    left, top, width, height = extent()
    assert (width, height) == (75, 50) and left < 1 > top
    box = view.bounding_box()
    page.mouse.move(box["x"] + 300, box["y"] + 200)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 150, steps=4)
    page.mouse.up()
    assert extent()[0] > left + 10 and extent()[1] > top + 2
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => document.querySelector('#view').viewBox.baseVal.width < 75")
    page.click("#next")
    expect(view).to_have_attribute("viewBox", "0 0 150 100")


def test_labels_answers_and_questions(page, server):
    """A labelled question is asked by a click; an untrained one is said to be so; errors clear the old answer."""
    open_page(page, server)
    expect(page.locator("#pairs tbody tr")).to_have_count(10)
    expect(page.locator("#pairs tr", has_text=TRACK_QUESTION)).to_contain_text("sandtrack")
    expect(page.locator("#pairs .given .correct, #pairs .given .wrong")).to_have_count(10)
    page.click(f"text={TRACK_QUESTION}")
    answer = page.locator("#answer")
    expect(answer).to_contain_text("truth: sandtrack")
    expect(page.locator("#untrained")).to_be_hidden()
    page.fill("#question", "Is it raining?")
    page.keyboard.press("Enter")
    expect(page.locator("#untrained")).to_be_visible()
    expect(answer).to_contain_text("confidence ")
    expect(answer).not_to_contain_text("truth")
    page.fill("#question", " ")
    page.keyboard.press("Enter")
    expect(page.locator("#error")).to_contain_text("type a question first")
    expect(answer).to_be_hidden()


def test_captions_are_compared(page, server):
    """It starts with one true and four false captions; the user's own stay from view to view, results do not."""
    open_page(page, server)
    page.click("#compare")
    rows = page.locator("#compared tr")
    expect(rows).to_have_count(5)
    expect(page.locator("#compared", has_text="✓ true")).to_have_count(1)
    expect(page.locator("#compared .wrong")).to_have_count(4)
    own = "The track is lighthouse.\nThe track is sandtrack.\n\nThe track is minigolf."
    page.fill("#texts", own)
    page.click("#compare")
    expect(rows).to_have_count(3)
    shares = [float(text.removesuffix(" %")) for text in page.locator("#compared td:nth-child(2)").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    expect(rows.first).to_contain_text("sandtrack. ✓ true")
    page.fill("#texts", "x" * 301)
    page.click("#compare")
    expect(page.locator("#error")).to_contain_text("300 characters")
    expect(rows).to_have_count(0)
    page.fill("#texts", own)
    page.click("#next")
    expect(page.locator("#error")).to_be_hidden()
    expect(page.locator("#texts")).to_have_value(own)


def test_wrong_and_contradictory_answers_are_found(page, server):
    """Cards show errors while the check runs; filters and orders by answers then work; the check can be stopped."""
    page.goto(f"{server.url}/#train")
    expect(page.locator("#check")).to_be_enabled()
    expect(page.locator("#confidence")).to_be_disabled()
    page.select_option("#split", "valid")
    expect(page.locator("#found")).to_have_text("672 of 672 views")
    page.click("#check")
    expect(page.locator("#grid .text-bg-danger:visible")).not_to_have_count(0)
    page.select_option("#error-filter", "contradiction")
    expect(page.locator("#grid a").first).to_contain_text("⚠")
    page.click("#check")
    expect(page.locator("#checking")).to_be_hidden()
    page.locator("#grid a").first.click()
    expect(page.locator("#contradictions")).to_contain_text("Expected: ")
    expect(page.locator("#pairs .contradiction:visible")).not_to_have_count(0)
    page.keyboard.press("Escape")
    page.select_option("#error-filter", "any")
    page.select_option("#sort", "errors")
    wait_for_descending(page, "#grid .text-bg-danger", 3)


def test_views_without_models(page, bare_server):
    """Views can be browsed, and the page says how to get a model."""
    page.goto(bare_server.url)
    expect(page.locator("#found")).to_have_text("72 of 72 views")
    expect(page.locator("#vlm")).to_contain_text("nowhere/vlm: no such checkpoint; train one with")
    expect(page.locator("#vlm")).to_contain_text("python -m homework.finetune train")
    expect(page.locator("#clip")).to_contain_text("python -m homework.clip train")
    expect(page.locator("#check")).to_be_disabled()
    page.locator("#grid a").first.click()
    expect(page.locator("#pairs tbody tr")).not_to_have_count(0)
    for name in ("#ask", "#compare"):
        expect(page.locator(name)).to_be_disabled()


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_legible(page, server, scheme, width):
    """All text has enough contrast, and none is cut off at the side, in the grid and in a view."""
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(server.url)
    expect(page.locator("#grid a")).to_have_count(60)
    for _ in range(2):
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        open_page(page, server)
        expect(page.locator("#pairs .given .correct, #pairs .given .wrong")).to_have_count(10)
