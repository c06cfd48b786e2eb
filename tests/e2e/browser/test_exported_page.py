"""Test the page of `export web` in a headless browser: equal to PyTorch, quick, offline, and usable on a phone."""

import base64
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.web.command import MODEL_FILES
from export.web.runtime import ARCHIVE
from homework import load_vlm
from homework.clip import load_with_tokenizer, predict
from homework.data import subsample_evenly
from homework.finetune import generate_questions
from homework.labels.eval_sets import multiple_choice, split_scenes
from homework.labels.rows import add_image_paths
from homework.models.loading import checkpoint_folder
from tests.export.conftest import in_export_env  # noqa: F401

from .driving import CONTRAST, ROOT, cpu_seconds, hosting
from .test_uploads import make_jpeg

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -r requirements-browser.txt")
expect = sync_api.expect
pytestmark = pytest.mark.slow

NUM_QUESTIONS, NUM_CHOICES, MAX_DIFFERENT = 500, 200, 2
SEND = """([method, argument]) => tux.call(method, argument)"""
OPEN = """(content) => tux.call("open", new Blob([Uint8Array.from(atob(content), (char) => char.charCodeAt(0))]))"""


@pytest.fixture(scope="session")
def folder(in_export_env, tmp_path_factory) -> Path:  # noqa: F811
    """Export the shipped models."""
    if not shutil.which("npm") and not (ROOT / "runs/npm" / ARCHIVE).exists():
        pytest.skip("no npm to download onnxruntime-web. Run `apt install npm`")
    output = tmp_path_factory.mktemp("export") / "web"
    in_export_env("-m", "export", "web", "--output", output)
    return output


@pytest.fixture
def site(folder, page):
    """Open the page and wait for its models."""
    with hosting(folder) as url:
        page.goto(url)
        page.evaluate("tux.ready")
        yield page


def descendants_cpu_seconds() -> float:
    """Return the CPU time of all processes below this one, the browser's among them."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    below, found = {os.getpid()}, set()
    while below := {pid for pid, parent in parents.items() if parent in below} - found:
        found |= below
    return sum(seconds for pid in found if (seconds := cpu_seconds(pid)) < float("inf"))


@contextlib.contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the duration of the block, by wall-clock or, if other processes are running, by CPU time."""
    start, cpu = time.perf_counter(), descendants_cpu_seconds()
    yield
    seconds.append(min(time.perf_counter() - start, descendants_cpu_seconds() - cpu))


def open_image(page, path: str) -> None:
    page.evaluate(OPEN, base64.b64encode(Path(path).read_bytes()).decode())


def test_models_are_small(folder):
    assert sum(file.stat().st_size for pattern in MODEL_FILES for file in folder.glob(pattern)) <= 20e6


def test_answers_equal_pytorchs(site, sample_data):
    """At most 2 of 500 questions and 200 choices differ, with all weights in float16."""
    scenes = dict(list(split_scenes(sample_data, "valid").items())[::2])
    asked = [row for row in generate_questions("valid", sample_data) if row["image_file"] in scenes]
    rows = subsample_evenly(asked, NUM_QUESTIONS)
    expected = load_vlm().answer([row["image_path"] for row in rows], [row["question"] for row in rows])
    choices = add_image_paths(multiple_choice(scenes, NUM_CHOICES, 0), sample_data)
    predicted = predict(*load_with_tokenizer(checkpoint_folder("clip")), choices)
    answered, different = list(zip(rows, expected, strict=True)), []
    for path in sorted({row["image_path"] for row in (*rows, *choices)}):
        open_image(site, path)
        asked = [(row["question"], answer) for row, answer in answered if row["image_path"] == path]
        found = site.evaluate(SEND, ["ask", [question for question, _ in asked]]) if asked else []
        for (question, answer), page in zip(asked, found, strict=True):
            if page["answer"] != answer:
                margin = f"logits {page['margin']:.4f} apart"
                different.append(f"{Path(path).name} {question} {answer}, on the page {page['answer']}, {margin}")
        for row, index in zip(choices, predicted, strict=True):
            if row["image_path"] == path:
                compared = [one["similarity"] for one in site.evaluate(SEND, ["compare", row["candidates"]])]
                if margin := max(compared) - compared[index]:
                    different.append(f"{Path(path).name} {row['candidates'][index]} less similar by {margin:.4f}")
    print(f"\n{len(different)} of {len(rows)} questions and {len(choices)} choices differ:", *different, sep="\n")
    assert len(rows) == NUM_QUESTIONS and len(choices) == NUM_CHOICES
    assert len(different) <= MAX_DIFFERENT


def test_it_loads_in_three_seconds_and_answers_in_one(folder, browser, sample_data):
    """The best of three visits without a cache, and of their answers to five questions about a picture."""
    loads, answers = [], []
    with hosting(folder) as url:
        for _ in range(3):
            context = browser.new_context()
            page = context.new_page()
            with timed(loads):
                page.goto(url)
                page.evaluate("tux.ready")
            for example in page.locator("#examples button").all()[:2]:
                with timed(answers):
                    example.click()
                    expect(page.locator("#answers tr")).to_have_count(5)
                    expect(page.locator("#status")).to_have_text("")
                page.evaluate("document.querySelector('#answers tbody').replaceChildren()")
            context.close()
    print(f"\nloaded in {min(loads):.2f} s, five answers in {min(answers):.2f} s")
    assert min(loads) < 3 and min(answers) < 1


def test_it_works_offline_after_the_first_load(folder, page):
    with hosting(folder) as url:
        page.goto(url)
        expect(page.locator("#offline")).to_contain_text("offline")
    page.goto(url)  # the server is gone
    page.locator("#examples button").first.click()
    expect(page.locator("#answers tr")).to_have_count(5)


def test_pictures_questions_and_captions(site):
    """A picture is chosen, dropped or pasted; what is recognised is drawn; nothing is fetched from elsewhere."""
    requested, host = [], site.url
    site.on("request", lambda request: requested.append(request.url))
    site.locator("#examples button").first.click()
    expect(site.locator("#answers tr")).to_have_count(5)
    expect(site.locator("#answers tr").nth(2)).to_contain_text("volcano_island")
    expect(site.locator("#view .ego text")).to_have_text("gnu (ego)")
    site.uncheck("#marks")
    expect(site.locator("#view .ego text")).to_be_hidden()
    site.select_option("#kart", "tux")
    expect(site.locator("#answers tr").nth(3)).to_contain_text("Where is tux relative to the ego car?")
    site.fill("#question", "What track is this?")
    site.click("#asking button")
    expect(site.locator("#answer")).to_contain_text("volcano_island")
    site.fill("#captions", "The track is abyss.\n\nThe track is volcano_island.")
    site.click("#comparing button")
    expect(site.locator("#compared tr.best")).to_contain_text("volcano_island")
    expect(site.locator("#compared tr")).to_have_count(2)

    site.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": make_jpeg((4000, 3000))})
    expect(site.locator("#compared tr")).to_have_count(0)
    for event in ("drop", "paste"):
        before = site.locator("#view image").get_attribute("href")
        site.evaluate(
            """async ([event, content]) => {
                const bytes = Uint8Array.from(atob(content), (char) => char.charCodeAt(0)), data = new DataTransfer();
                data.items.add(new File([bytes], "mine.jpg", { type: "image/jpeg" }));
                const options = event === "drop" ? { dataTransfer: data } : { clipboardData: data };
                dispatchEvent(new (event === "drop" ? DragEvent : ClipboardEvent)(event, options));
            }""",
            [event, base64.b64encode(make_jpeg()).decode()],
        )
        expect(site.locator("#view image")).not_to_have_attribute("href", before)
    site.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    expect(site.locator("#status")).to_contain_text("This picture cannot be used")
    expect(site.locator("#answers tr")).to_have_count(5)
    assert requested and all(url.startswith((host, f"blob:{host}")) for url in requested)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_on_a_phone_too(site, scheme):
    """All text has enough contrast, nothing is cut off at the side, and buttons are large enough for a finger."""
    site.emulate_media(color_scheme=scheme)
    site.locator("#examples button").first.click()
    expect(site.locator("#status")).to_have_text("")
    expect(site.locator("#answers tr")).to_have_count(5)
    for width in (1280, 360):
        site.set_viewport_size({"width": width, "height": 740})
        assert site.evaluate(CONTRAST) == []
        assert site.evaluate("document.documentElement.scrollWidth") <= width
    for button in site.locator("button, select, #question").all():
        assert button.bounding_box()["height"] >= 36


def test_a_missing_file_is_reported(folder, page, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "clip_text.onnx").unlink()
    with hosting(broken) as url:
        page.goto(url)
        page.locator("#examples button").first.click()
        page.click("#comparing button")
        expect(page.locator("#status")).to_contain_text("clip_text.onnx: 404")
        (broken / "vlm_image.onnx").unlink()
        page.reload()
        expect(page.locator("#status")).to_contain_text("vlm_image.onnx: 404")
