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
from homework.labels.questions import QUESTION_TYPES, QUESTIONS
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
    assert labelled["is_correct"] == (labelled["answer"] == "zengarden")
    assert 0 <= labelled["confidence"] <= 1 and labelled["is_trained"]
    free = client.post("/api/ask", json={**VIEW, "question": "Is it raining?"}).json()
    assert free["answer"] == vlm.answer([path], ["Is it raining?"])[0]
    assert free["truth"] is free["is_correct"] is None and not free["is_trained"]
    other = client.post("/api/ask", json={**VIEW, "question": "Is batman to the left or right of the ego car?"})
    assert not other.json()["is_trained"]

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


def test_all_questions_are_asked_about_an_upload(client, tiny_data):
    """Each question type is asked at once, without truths; the answers are those to single questions."""
    content = (tiny_data / "valid" / "000a0_00_im.jpg").read_bytes()
    upload = client.post("/api/upload", content=content).json()
    found = client.get(f"/api/answers/uploads/{upload['key']}").json()
    assert found["is_unfamiliar"] in (True, False)
    rows = found["answers"]
    assert {row["question_type"] for row in rows} == set(QUESTION_TYPES) and len(rows) == len(QUESTIONS)
    assert all(row["truth"] is row["is_correct"] is None and 0 <= row["confidence"] <= 1 for row in rows)
    for row in rows:
        assert client.post("/api/ask", json={**upload, "question": row["question"]}).json()["answer"] == row["answer"]
    without_clip = Models()
    assert {question for question, _ in without_clip.questions_about_upload(None)} < {row["question"] for row in rows}


def test_contradictions_are_marked(client, monkeypatch):
    """Each answer that takes part in a failed check is marked with it, and no other."""

    def answer(_, paths, questions):
        return ["3" if "how many" in question.lower() else "front and left" for question in questions]

    monkeypatch.setattr("homework.base_vlm.BaseVLM.answer", answer)
    rows = client.get("/api/answers/valid/000a0_00").json()["answers"]
    marks = {row["question"]: row["contradictions"] for row in rows}
    sides, depth, halves = "left + right = total - 1", "front + behind = total - 1", "where = its two parts"
    assert marks["How many karts are there in the scenario?"] == [sides, depth]
    assert marks["How many karts are to the left of the ego car?"] == [sides]
    assert marks["How many karts are behind the ego car?"] == [depth]
    assert marks["Where is sara_the_racer relative to the ego car?"] == [halves]
    assert marks[TRACK] == marks["What kart is the ego car?"] == []
    found = client.get("/api/views/valid", params={"error": "contradiction"}).json()
    assert found["keys"] == ["000a0_00"] and found["cards"][0]["contradicts"]
    found = client.get("/api/views/valid", params={"error": "track", "sort": "errors"}).json()
    assert found["keys"] == ["000a0_00"] and found["cards"][0]["wrong"] > 0


def test_wrong_answers_are_found_in_the_background(client):
    """The filter fills as views are checked; at the end it has exactly the views with a wrong answer."""
    assert client.get("/api/views/valid", params={"error": "any"}).json()["keys"] == []
    assert client.post("/api/check", json={"split": "valid"}).status_code == 200
    for _ in range(600):
        status = client.get("/api/status", params={"split": "valid"}).json()
        if status["checked"] == status["views"]:
            break
        time.sleep(0.1)
    assert status["checked"] == status["views"] == 6
    wrong = client.get("/api/views/valid", params={"error": "any"}).json()["keys"]
    cards = {card["key"]: card for card in client.get("/api/views/valid").json()["cards"]}
    for key, card in cards.items():
        answers = client.get(f"/api/answers/valid/{key}").json()["answers"]
        correct = [is_exact_match(row["answer"], row["truth"]) for row in answers]
        assert card["wrong"] == correct.count(False) and (key in wrong) == (not all(correct))
        assert card["confidence"] == min(row["confidence"] for row in answers)
    keys = client.get("/api/views/valid", params={"sort": "confidence"}).json()["keys"]
    assert keys == sorted(cards, key=lambda key: cards[key]["confidence"])
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
