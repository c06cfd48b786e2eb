"""Test viewer explore without a model: views are found and shown, and invalid input is rejected."""

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
from homework.labels.questions import classify_caption, qa_pairs
from homework.labels.visualize import ROLE_COLORS
from viewer.explorer import library
from viewer.explorer.app import make_app
from viewer.explorer.cli import explore
from viewer.explorer.library import Library
from viewer.explorer.models import Models

ROOT = Path(__file__).parents[2]
URL = "http://127.0.0.1"


@pytest.fixture
def client(tiny_data) -> TestClient:
    """Return a client of a server without models."""
    models = Models("nowhere/vlm", "nowhere/clip")
    models.load()
    return TestClient(make_app(Library(tiny_data), models), base_url=URL)


def make_image(size=(300, 200), image_format="PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, "navy").save(stream, image_format)
    return stream.getvalue()


# a header of 60,000x60,000 pixels, which Pillow itself rejects
HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0"
HUGE += zlib.crc32(HUGE[12:]).to_bytes(4) + b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4)


def test_a_folder_of_hidden_files_is_not_a_split(tiny_data):
    (tiny_data / "notes").mkdir()
    (tiny_data / "notes" / "._00000_info.json").write_bytes(b"\0\5\26\7")
    assert Library(tiny_data).splits == ["train", "valid"]


def test_views_are_found_by_track_kart_number_and_size(client):
    """Filters work alone, together, and if no view matches; a page of cards describes the first views."""
    found = client.get("/api/views/valid", params={"limit": 2}).json()
    assert found["total"] == len(found["keys"]) == 6 and len(found["cards"]) == 2
    assert found["facets"]["track"] == {"scotland": 3, "zengarden": 3}
    assert found["facets"]["number"] == {"1": 2, "2": 2, "3": 2}
    assert found["facets"]["size"] == {"15 to 24": 6} and not found["facets"]["error"]
    first = found["cards"][0]
    assert (first["key"], first["track"], first["ego"], first["number"]) == ("000a0_00", "zengarden", "nolok", 2)
    assert first["wrong"] is first["confidence"] is None

    def keys(**query) -> list[str]:
        return client.get("/api/views/valid", params=query).json()["keys"]

    assert keys(track="scotland") == ["000a1_00", "000a1_01", "000a1_02"]
    assert keys(number=1) == ["000a0_01", "000a1_01"]
    assert keys(kart="nolok", track="zengarden") == ["000a0_00"]
    assert keys(kart="kiki") == keys(error="any") == []
    assert keys(sort="number")[:2] == ["000a0_02", "000a1_02"]
    assert keys(sort="size")[0] == "000a0_00" and keys(sort="errors") == keys()
    train = {"number": 0, "size": "no kart", "sort": "size"}
    assert client.get("/api/views/train", params=train).json()["keys"] == ["00002_01"]
    assert client.get("/api/views/valid", params={"sort": "colour"}).status_code == 422


def test_filter_values_match_the_other_filters(client):
    """With a track selected, only its karts and numbers are offered; other tracks still are."""
    found = client.get("/api/views/valid", params={"track": "zengarden", "kart": "nolok"}).json()["facets"]
    assert found["track"] == {"scotland": 1, "zengarden": 1} and found["number"] == {"2": 1}
    assert set(found["kart"]) == {"gnu", "nolok", "sara_the_racer", "tux", "xue"}


def test_one_true_and_four_false_captions_are_proposed(client):
    """They are the same each time; a view with a single kart has them too, and an upload has five of any kind."""
    for key in client.get("/api/views/valid").json()["keys"]:
        view = client.get(f"/api/views/valid/{key}").json()
        assert len(set(view["choices"])) == 5
        assert len(set(view["choices"]) & set(view["captions"])) == 1
        assert {classify_caption(text) for text in view["choices"]} >= {"ego", "total", "track", "relation"}
        assert client.get(f"/api/views/valid/{key}").json() == view
    upload = client.post("/api/upload", content=make_image()).json()["key"]
    view = client.get(f"/api/views/uploads/{upload}").json()
    assert len(set(view["choices"])) == 5 and view["captions"] == view["pairs"] == []


def test_a_view_has_its_boxes_pairs_captions_and_image(client, tiny_data):
    """Labels follow the label rule, and the image is the file's bytes."""
    view = client.get("/api/views/valid/000a0_00").json()
    _, scene = read_scenes(tiny_data / "valid" / "000a0_info.json")[0]
    assert [(pair["question"], pair["truth"]) for pair in view["pairs"]] == list(qa_pairs(scene))
    assert "nolok is the ego car." in view["captions"]
    assert [box["role"] for box in view["boxes"]] == ["other", "kart", "ego"]
    image = client.get("/api/images/valid/000a0_00")
    assert image.content == (tiny_data / "valid" / "000a0_00_im.jpg").read_bytes()
    assert image.headers["content-type"] == "image/jpeg"


def test_no_path_in_a_request_is_opened(client, tiny_data):
    """Only keys of the index are accepted."""
    (tiny_data / "secret_im.jpg").write_bytes(make_image())
    for path in ("valid/..%2fsecret", "valid/%2e%2e%2fsecret", "%2e%2e/secret", "valid/secret", "none/000a0_00"):
        for resource in ("images", "views", "answers"):
            assert client.get(f"/api/{resource}/{path}").status_code == 404, path
    assert client.get("/static/..%2fapp.py").status_code == 404


def test_missing_model_is_reported(client):
    """The page opens, and a question is answered with one line that names the missing checkpoint."""
    assert client.get("/").status_code == 200
    assert "nowhere/vlm: no such checkpoint; " in client.get("/api/status").json()["models"]["vlm"]
    view = {"split": "valid", "key": "000a0_00"}
    for path, content in (
        ("ask", {**view, "question": "What track is this?"}),
        ("compare", {**view, "texts": ["The track is abyss."]}),
        ("check", {"split": "valid"}),
    ):
        response = client.post(f"/api/{path}", json=content)
        assert response.status_code == 503 and "no such checkpoint" in response.json()["detail"]
    assert client.get("/api/answers/valid/000a0_00").status_code == 503


def test_images_can_be_uploaded_and_the_oldest_are_deleted(client, monkeypatch):
    """An upload is served re-encoded and reduced; only the latest are kept."""
    monkeypatch.setattr(library, "MAX_UPLOADS", 2)
    keys = [
        client.post("/api/upload", content=make_image((3000, 1000), format_)).json()["key"]
        for format_ in ("JPEG", "PNG", "BMP")
    ]
    assert client.get("/api/views/uploads").json()["keys"] == keys[1:]
    shown = client.get(f"/api/images/uploads/{keys[-1]}")
    assert Image.open(io.BytesIO(shown.content)).size == (1200, 400)
    assert client.get(f"/api/views/uploads/{keys[-1]}").json()["pairs"] == []
    assert client.get(f"/api/images/uploads/{keys[0]}").status_code == 404


@pytest.mark.parametrize(
    "content, status, words",
    [
        (b"", 415, "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a readable image"),
        (make_image()[:-200], 415, "not a readable image"),
        (make_image() + bytes(library.MAX_UPLOAD_BYTES), 413, "too large: more than 10 MB"),
        (make_image((8000, 7000)), 413, "too large: more than 50 million pixels"),
        (HUGE, 413, "too large: more than 50 million pixels"),
    ],
    ids=["empty", "svg", "truncated", "bytes", "pixels", "header only"],
)
def test_bad_uploads_are_rejected_with_a_message(client, content, status, words):
    response = client.post("/api/upload", content=content)
    assert response.status_code == status and words in response.json()["detail"]
    assert client.get("/api/views/uploads").json()["keys"] == []


def test_cross_origin_requests_are_rejected(client):
    """Other hosts and origins are rejected; the page loads only its own resources."""
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert (
        client.post("/api/upload", content=make_image(), headers={"origin": "http://evil.example"}).status_code == 403
    )
    assert client.post("/api/upload", content=make_image(), headers={"origin": URL}).status_code == 200
    assert client.get("/").headers["content-security-policy"].startswith("default-src 'self'")
    for name in ("index.html", "picture.js", "shown.js", "explore.js", "explore.css"):
        text = (ROOT / "viewer" / "explorer" / "static" / name).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert "innerHTML" not in text


def test_bad_requests_get_one_line(client):
    """Invalid bodies are answered with one line, not a structure."""
    for content in ({"split": "valid", "key": "000a0_00", "question": " "}, {"split": "valid"}, {}):
        response = client.post("/api/ask", json=content)
        assert response.status_code == 422 and isinstance(response.json()["detail"], str)
    too_long = {"split": "valid", "key": "000a0_00", "question": "x" * 301}
    assert client.post("/api/ask", json=too_long).status_code == 422


def test_broken_and_missing_frames_are_named(client, tiny_data, tmp_path, call):
    """The error names the broken frame, or the folder without frames."""
    (tiny_data / "train" / "00001_info.json").write_text("{")
    response = client.get("/api/views/train")
    assert response.status_code == 500 and "00001_info.json" in response.json()["detail"]
    assert_one_line_error(call((explore,), "explore", "--data", tmp_path / "empty"), "empty")


def test_boxes_have_the_same_colors_everywhere():
    """The page's style sheet has the colours of `check` and the report."""
    style = (ROOT / "viewer" / "explorer" / "static" / "explore.css").read_text()
    assert {role: re.search(rf"--{role}: (#\w+);", style)[1] for role in ROLE_COLORS} == ROLE_COLORS


@pytest.fixture
def server(tiny_data):
    """Start the command in a process: (its address, the process)."""
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
    """A second server on the same port fails in one line; Ctrl-C ends the first without an error."""
    url, process = server
    with urllib.request.urlopen(f"{url}/api/splits") as response:
        assert json.load(response)["splits"] == ["train", "valid"]
    port = url.rpartition(":")[2]
    assert_one_line_error(call((explore,), "explore", "--data", tiny_data, "--port", port), port)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0 and "closed" in process.stdout.read()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_ended_while_the_models_load(tiny_data, tmp_path, number, status):
    """A thread inside torch does not make the exit crash, and uploads are deleted."""
    command = [sys.executable, "-m", "viewer", "explore", "--data", str(tiny_data), "--port", "0"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=heed_ctrl_c, **streams)
    url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    urllib.request.urlopen(f"{url}/api/splits").close()  # waits until it serves
    assert list(tmp_path.glob("uploads-*"))
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (status, "") and not list(tmp_path.glob("uploads-*")), out
