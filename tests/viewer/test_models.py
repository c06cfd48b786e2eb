"""Test viewer explore with tiny models: questions, captions, and the search for wrong answers."""

import io
import time

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -r requirements.txt")

from starlette.testclient import TestClient

from homework.base_vlm import BaseVLM
from homework.clip import predict
from homework.data import is_exact_match
from tests.tiny_models import save_clip
from viewer.explorer.app import make_app
from viewer.explorer.library import Library
from viewer.explorer.models import Models

VIEW = {"split": "valid", "key": "000a0_00"}
TRACK = "What track is this?"


@pytest.fixture
def models(nano_folder, tmp_path) -> Models:
    save_clip(nano_folder, tmp_path / "clip")
    models = Models(str(nano_folder), str(tmp_path / "clip"))
    models.load()
    assert models.state == {"vlm": "ready", "clip": "ready"}
    return models


@pytest.fixture
def client(tiny_data, models) -> TestClient:
    return TestClient(make_app(Library(tiny_data), models), base_url="http://127.0.0.1")


def test_answers_and_comparisons_are_the_models(client, models, tiny_data, nano_folder):
    """The page returns what the models return, for labelled and free questions, captions and uploads."""
    path = str(tiny_data / "valid" / "000a0_00_im.jpg")
    vlm = BaseVLM(nano_folder)
    labelled = client.post("/api/ask", json={**VIEW, "question": f" {TRACK} "}).json()
    assert labelled["answer"] == vlm.answer([path], [TRACK])[0] and labelled["truth"] == "zengarden"
    assert 0 <= labelled["probability"] <= 1 and labelled["seconds"] > 0
    free = client.post("/api/ask", json={**VIEW, "question": "Is it raining?"}).json()
    assert free["answer"] == vlm.answer([path], ["Is it raining?"])[0] and free["truth"] is None

    texts = ["The track is abyss.", "tux is the ego car.", "There are 3 karts in the scene."]
    found = client.post("/api/compare", json={**VIEW, "texts": texts}).json()["probabilities"]
    clip, tokenizer = models._models["clip"]
    (best,) = predict(clip, tokenizer, [{"image_path": path, "candidates": texts}])
    assert found.index(max(found)) == best and all(0 < value < 1 for value in found)
    assert client.post("/api/compare", json={**VIEW, "texts": []}).status_code == 422

    stream = io.BytesIO()
    Image.open(path).save(stream, "PNG")
    upload = client.post("/api/upload", content=stream.getvalue()).json()
    assert client.post("/api/ask", json={**upload, "question": TRACK}).json()["answer"] == labelled["answer"]
    assert client.get(f"/api/answers/uploads/{upload['key']}").json() == {"answers": {}}


def test_wrong_answers_are_found_in_the_background(client):
    """The filter fills as views are checked; at the end it has exactly the views with a wrong answer."""
    assert client.get("/api/views/valid", params={"wrong": True}).json()["keys"] == []
    assert client.post("/api/check", json={"split": "valid"}).status_code == 200
    for _ in range(600):
        status = client.get("/api/status", params={"split": "valid"}).json()
        if status["checked"] == status["views"]:
            break
        time.sleep(0.1)
    assert status["checked"] == status["views"] == 6
    wrong = client.get("/api/views/valid", params={"wrong": True}).json()["keys"]
    assert len(wrong) == status["wrong"]
    for key in client.get("/api/views/valid").json()["keys"]:
        pairs = client.get(f"/api/views/valid/{key}").json()["pairs"]
        answers = client.get(f"/api/answers/valid/{key}").json()["answers"]
        correct = [is_exact_match(answers[pair["question"]], pair["answer"]) for pair in pairs]
        assert (key in wrong) == (not all(correct))
    assert client.delete("/api/check").status_code == 200
    assert client.post("/api/check", json={"split": "none"}).status_code == 404


def test_a_missing_image_does_not_stop_the_search(client, tiny_data):
    """All other views of its batch are checked."""
    (tiny_data / "valid" / "000a0_01_im.jpg").unlink()
    client.post("/api/check", json={"split": "valid"})
    for _ in range(600):
        status = client.get("/api/status", params={"split": "valid"}).json()
        if status["checked"] == status["views"] - 1:
            break
        time.sleep(0.1)
    assert status["checked"] == status["views"] - 1


def test_any_loading_error_is_reported(monkeypatch, nano_folder):
    """Running out of memory is not an `InputError`, and the page must not wait forever."""

    def run_out_of_memory(checkpoint):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("homework.base_vlm.BaseVLM", run_out_of_memory)
    models = Models(str(nano_folder), "none")
    models.load()
    assert models.state["vlm"] == "out of memory" and "no such checkpoint" in models.state["clip"]


def test_questions_fail_while_the_models_load(tiny_data):
    """The error says that the model is still loading."""
    waiting = TestClient(make_app(Library(tiny_data), Models("a", "b")), base_url="http://127.0.0.1")
    response = waiting.post("/api/ask", json={**VIEW, "question": TRACK})
    assert response.status_code == 503 and response.json()["detail"] == "the model is still loading"
