"""viewer explore with a tiny model: questions, captions, and the search for wrong answers."""

import io
import time

import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -r requirements.txt")

from starlette.testclient import TestClient

from homework.base_vlm import BaseVLM
from homework.clip import build_trainable, predict
from homework.data import is_exact_match
from viewer.explorer.app import make_app
from viewer.explorer.library import Library
from viewer.explorer.models import Models

VIEW = {"split": "valid", "key": "000a0_00"}
TRACK = "What track is this?"


@pytest.fixture
def models(nano_folder, tmp_path) -> Models:
    torch.manual_seed(0)
    build_trainable(str(nano_folder), 4).save_adapter(tmp_path / "clip")
    models = Models(str(nano_folder), str(tmp_path / "clip"))
    models.load()
    assert models.state == {"vlm": "ready", "clip": "ready"}
    return models


@pytest.fixture
def client(tiny_data, models) -> TestClient:
    return TestClient(make_app(Library(tiny_data), models), base_url="http://127.0.0.1")


def test_questions_and_captions_get_what_the_models_say(client, models, tiny_data, nano_folder):
    """The page's answers are those of the models themselves: of labelled and free questions, of CLIP, of uploads."""
    path = str(tiny_data / "valid" / "000a0_00_im.jpg")
    vlm = BaseVLM(nano_folder)
    asked = client.post("/api/ask", json={**VIEW, "question": f" {TRACK} "}).json()
    assert asked["answer"] == vlm.answer([path], [TRACK])[0] and asked["truth"] == "zengarden"
    assert 0 <= asked["probability"] <= 1 and asked["seconds"] > 0
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
    assert client.post("/api/ask", json={**upload, "question": TRACK}).json()["answer"] == asked["answer"]
    assert client.get(f"/api/answers/uploads/{upload['key']}").json() == {"answers": {}}


def test_wrong_answers_are_found_in_the_background(client):
    """Views join the filter as they are looked at; at the end all of them were, and each was answered as it says."""
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
        right = [is_exact_match(answers[pair["question"]], pair["answer"]) for pair in pairs]
        assert (key in wrong) == (not all(right))
    assert client.delete("/api/check").status_code == 200
    assert client.post("/api/check", json={"split": "none"}).status_code == 404


def test_a_missing_image_hides_no_other_view(client, tiny_data):
    (tiny_data / "valid" / "000a0_01_im.jpg").unlink()
    client.post("/api/check", json={"split": "valid"})
    for _ in range(600):
        status = client.get("/api/status", params={"split": "valid"}).json()
        if status["checked"] == status["views"] - 1:
            break
        time.sleep(0.1)
    assert status["checked"] == status["views"] - 1


def test_what_a_model_dies_of_is_told(monkeypatch, nano_folder):
    """A full memory is no `InputError`, and the page must not wait for ever."""

    def full(checkpoint: str):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("viewer.explorer.models._load_vlm", full)
    models = Models(str(nano_folder), "none")
    models.load()
    assert models.state["vlm"] == "out of memory" and "no such checkpoint" in models.state["clip"]


def test_before_the_models_are_loaded_a_question_is_told_to_wait(tiny_data):
    waiting = TestClient(make_app(Library(tiny_data), Models("a", "b")), base_url="http://127.0.0.1")
    refused = waiting.post("/api/ask", json={**VIEW, "question": TRACK})
    assert refused.status_code == 503 and refused.json()["detail"] == "the model is still being loaded"
