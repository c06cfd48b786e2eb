"""Test how viewer explore takes the user's own pictures, in a headless browser."""

import io
import struct
import zlib

import pytest
from PIL import Image

from .driving import VIEW, open_page

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
expect = sync_api.expect
pytestmark = pytest.mark.slow

TRACK_QUESTION = "What track is this?"


def make_jpeg(size=(300, 200)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


def make_decompression_bomb(width: int, height: int) -> bytes:
    """Make a few bytes with the PNG header of an image that would fill the memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def upload(page, name: str, content: bytes) -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/jpeg", "buffer": content})


def send_file(page, event: str, content: bytes) -> None:
    """Drop a picture's file on the page, or paste it."""
    page.evaluate(
        """([event, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "mine.jpg", { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                : new DragEvent(event, { ...options, dataTransfer: data }));
        }""",
        [event, list(content)],
    )


BAD = {
    "notes.txt": b"just a text",
    "cut.jpg": make_jpeg()[:200],
    "huge.png": make_decompression_bomb(60_000, 60_000),
    "empty.png": b"",
    "page.jpg": b"<!DOCTYPE html><script>alert(1)</script>",
}


def test_bad_uploads(page, server):
    """Every bad file is rejected with a line that names it and is visible at any scroll position."""
    page.set_viewport_size({"width": 400, "height": 800})
    open_page(page, server)
    error = page.locator("#error")
    for name, content in BAD.items():
        page.locator("#texts").scroll_into_view_if_needed()
        upload(page, name, content)
        expect(error).to_contain_text(f"{name}: not a picture")
        expect(error).to_be_in_viewport()
        page.click("#next")  # the page still works
        expect(error).to_be_hidden()


def test_questions_of_all_types_are_asked_about_an_upload(page, server):
    """A foreign picture is said to be one, a frame is not; large files are reduced before they are sent."""
    open_page(page, server)
    with page.expect_request("**/api/upload") as request:
        upload(page, "large.jpg", make_jpeg((3000, 2500)) + bytes(11_000_000))
    assert int(request.value.all_headers()["content-length"]) < 3_000_000
    expect(page.locator("#found")).to_contain_text("of 1 views")
    expect(page.locator("#split")).to_have_value("uploads")
    expect(page.locator("#view image")).to_have_attribute("href", "/api/images/uploads/1")
    expect(page.locator("#pairs tbody tr")).to_have_count(10)
    expect(page.locator("#pairs")).to_contain_text(TRACK_QUESTION)
    expect(page.locator("#unfamiliar")).to_be_visible()
    page.select_option("#split", "valid")
    expect(page.locator("#found")).to_have_text("672 of 672 views")


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_frame_is_dropped_or_pasted(page, server, sample_data, event):
    """The picture is answered as the labelled view is, and nothing is said against it."""
    open_page(page, server)
    if event == "drop":
        send_file(page, "dragover", b"")
        expect(page.locator(".drop-target")).to_be_visible()
    send_file(page, event, (sample_data / f"valid/{VIEW}_im.jpg").read_bytes())
    expect(page.locator("#split")).to_have_value("uploads")
    expect(page.locator(".drop-target")).to_be_hidden()
    expect(page.locator("#pairs tr", has_text=TRACK_QUESTION)).to_contain_text("sandtrack")
    expect(page.locator("#unfamiliar")).to_be_hidden()


def test_a_picture_is_shown_without_models(page, bare_server):
    page.goto(bare_server.url)
    expect(page.locator("#found")).to_have_text("72 of 72 views")
    upload(page, "mine.jpg", make_jpeg())
    expect(page.locator("#found")).to_have_text("1 of 1 views")
    expect(page.locator("#view image")).to_have_count(1)
    expect(page.locator("#error")).to_be_hidden()
