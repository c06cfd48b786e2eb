"""viewer explore without a model: views are found and shown, and what must not come in stays out."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import assert_one_line_error, heed_ctrl_c

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -r requirements.txt")

from starlette.testclient import TestClient

from homework.labels.frame_info import read_scenes
from homework.labels.questions import qa_pairs
from homework.labels.visualize import COLOURS
from viewer.explorer import library as module
from viewer.explorer.app import make_app
from viewer.explorer.cli import explore
from viewer.explorer.library import Library
from viewer.explorer.models import Models

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1"


@pytest.fixture
def client(tiny_data) -> TestClient:
    """The server where neither model is there."""
    models = Models("nowhere/vlm", "nowhere/clip")
    models.load()
    return TestClient(make_app(Library(tiny_data), models), base_url=URL)


def picture(size=(300, 200), kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "navy").save(stream, kind)
    return stream.getvalue()


# 60,000x60,000 pixels, by its header: Pillow itself refuses it
HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0"
HUGE += zlib.crc32(HUGE[12:]).to_bytes(4) + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)


def test_views_are_found_by_track_kart_and_number(client):
    """Each filter alone, two together, and none."""
    found = client.get("/api/views/valid").json()
    assert found["of"] == len(found["keys"]) == 6
    assert found["tracks"] == {"scotland": 3, "zengarden": 3} and found["numbers"] == {"1": 2, "2": 2, "3": 2}

    def keys(**query) -> list[str]:
        return client.get("/api/views/valid", params=query).json()["keys"]

    assert keys(track="scotland") == ["000a1_00", "000a1_01", "000a1_02"]
    assert keys(number=1) == ["000a0_01", "000a1_01"]
    assert keys(kart="nolok", track="zengarden") == ["000a0_00"]
    assert keys(kart="kiki") == []
    assert client.get("/api/views/train", params={"number": 0}).json()["keys"] == ["00002_01"]


def test_choices_are_those_that_go_with_the_others(client):
    """With a track chosen, only karts and numbers that it has; the other tracks can still be taken."""
    found = client.get("/api/views/valid", params={"track": "zengarden", "kart": "nolok"}).json()
    assert found["tracks"] == {"scotland": 1, "zengarden": 1} and found["numbers"] == {"2": 1}
    assert set(found["karts"]) == {"gnu", "nolok", "sara_the_racer", "tux", "xue"}


def test_a_view_has_its_boxes_pairs_captions_and_image(client, tiny_data):
    """What the label rule says of it, and the file's very bytes."""
    view = client.get("/api/views/valid/000a0_00").json()
    _, scene = read_scenes(tiny_data / "valid" / "000a0_info.json")[0]
    assert [(pair["question"], pair["answer"]) for pair in view["pairs"]] == list(qa_pairs(scene))
    assert view["ego"] == "nolok" and "nolok is the ego car." in view["captions"]
    assert [box["role"] for box in view["boxes"]] == ["other", "kart", "ego"]
    image = client.get("/api/images/valid/000a0_00")
    assert image.content == (tiny_data / "valid" / "000a0_00_im.jpg").read_bytes()
    assert image.headers["content-type"] == "image/jpeg"


def test_no_path_of_a_request_is_opened(client, tiny_data):
    """Only keys of the index are known, whatever a request names."""
    (tiny_data / "secret_im.jpg").write_bytes(picture())
    for path in ("valid/..%2fsecret", "valid/%2e%2e%2fsecret", "%2e%2e/secret", "valid/secret", "none/000a0_00"):
        for what in ("images", "views", "answers"):
            assert client.get(f"/api/{what}/{path}").status_code == 404, path
    assert client.get("/static/..%2fapp.py").status_code == 404


def test_without_a_model_the_page_says_so(client):
    """It opens, and a question gets a line that names what is missing."""
    assert client.get("/").status_code == 200
    assert "nowhere/vlm: no such checkpoint; " in client.get("/api/status").json()["models"]["vlm"]
    view = {"split": "valid", "key": "000a0_00"}
    for path, content in (
        ("ask", {**view, "question": "What track is this?"}),
        ("compare", {**view, "texts": ["The track is abyss."]}),
        ("check", {"split": "valid"}),
    ):
        refused = client.post(f"/api/{path}", json=content)
        assert refused.status_code == 503 and "no such checkpoint" in refused.json()["detail"]
    assert client.get("/api/answers/valid/000a0_00").status_code == 503


def test_pictures_can_be_uploaded_and_the_oldest_go(client, monkeypatch):
    """It is shown decoded anew and not too large; a few are kept."""
    monkeypatch.setattr(module, "MAX_UPLOADS", 2)
    keys = [
        client.post("/api/upload", content=picture((3000, 1000), kind)).json()["key"] for kind in ("JPEG", "PNG", "BMP")
    ]
    assert client.get("/api/views/uploads").json()["keys"] == keys[1:]
    shown = client.get(f"/api/images/uploads/{keys[-1]}")
    assert Image.open(io.BytesIO(shown.content)).size == (1200, 400)
    assert client.get(f"/api/views/uploads/{keys[-1]}").json()["pairs"] == []
    assert client.get(f"/api/images/uploads/{keys[0]}").status_code == 404


@pytest.mark.parametrize(
    "content, status, words",
    [
        (b"", 415, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
        (picture()[:-200], 415, "not an image"),
        (picture() + bytes(module.MAX_BYTES), 413, "too large: more than 10 MB"),
        (picture((8000, 7000)), 413, "too large: more than 50 million pixels"),
        (HUGE, 413, "too large: more than 50 million pixels"),
    ],
    ids=["empty", "svg", "cut short", "bytes", "pixels", "a header alone"],
)
def test_bad_uploads_are_refused_with_a_message(client, content, status, words):
    refused = client.post("/api/upload", content=content)
    assert refused.status_code == status and words in refused.json()["detail"]
    assert client.get("/api/views/uploads").json()["keys"] == []


def test_other_sites_can_neither_ask_nor_be_loaded(client):
    """Not under another host's name, not from another site's page; the page itself loads only what is its own."""
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.post("/api/upload", content=picture(), headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post("/api/upload", content=picture(), headers={"origin": URL}).status_code == 200
    assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("index.html", "draw.js", "explore.js", "explore.css"):
        text = (ROOT / "viewer" / "explorer" / "static" / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert "innerHTML" not in text


def test_bad_requests_get_one_line(client):
    for content in ({"split": "valid", "key": "000a0_00", "question": " "}, {"split": "valid"}, {}):
        refused = client.post("/api/ask", json=content)
        assert refused.status_code == 422 and isinstance(refused.json()["detail"], str)
    asked = {"split": "valid", "key": "000a0_00", "question": "x" * 301}
    assert client.post("/api/ask", json=asked).status_code == 422


def test_broken_frames_and_no_frames_are_named(client, tiny_data, tmp_path, call):
    """A split with a broken frame says which; a folder without frames doesn't open."""
    (tiny_data / "train" / "00001_info.json").write_text("{")
    refused = client.get("/api/views/train")
    assert refused.status_code == 500 and "00001_info.json" in refused.json()["detail"]
    assert_one_line_error(call((explore,), "explore", "--data", tmp_path / "empty"), "empty")


def test_boxes_have_one_colour_everywhere():
    """The page's style has those of `check` and the report."""
    style = (ROOT / "viewer" / "explorer" / "static" / "explore.css").read_text()
    assert {role: re.search(rf"--{role}: (#\w+);", style)[1] for role in COLOURS} == COLOURS


@pytest.fixture
def server(tiny_data):
    """The command itself in a process of its own: its address and the process."""
    command = [
        sys.executable,
        "-m",
        "viewer",
        "explore",
        "--data",
        str(tiny_data),
        "--checkpoint",
        "none",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    line = process.stdout.readline()
    yield re.search(r"http://127\.0\.0\.1:\d+", line)[0], process
    process.kill()
    process.wait()


def test_the_command_serves_until_ctrl_c(server, call, tiny_data):
    """Another one on the same port is refused in one line; Ctrl-C ends it without an error."""
    url, process = server
    with urllib.request.urlopen(f"{url}/api/splits") as response:
        assert json.load(response)["splits"] == ["train", "valid"]
    port = url.rpartition(":")[2]
    assert_one_line_error(call((explore,), "explore", "--data", tiny_data, "--port", port), port)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0 and "closed" in process.stdout.read()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ended_while_the_models_load_it_leaves_nothing(tiny_data, tmp_path, number, status):
    """A thread that is inside of torch then is no reason to crash, and no upload stays."""
    command = [sys.executable, "-m", "viewer", "explore", "--data", str(tiny_data), "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed_ctrl_c, **streams)
    url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    urllib.request.urlopen(f"{url}/api/splits").close()  # it serves
    assert list(tmp_path.glob("uploads-*"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "") and not list(tmp_path.glob("uploads-*")), out
