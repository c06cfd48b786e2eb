"""Test viewer report: a self-contained page, and the numbers in it."""

import json
import re

import pytest
import torch

from homework.labels.eval_sets import split_scenes
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import qa_pairs
from homework.labels.rows import parse_image_file
from homework.labels.scene import Kart, Scene, build_scene
from homework.labels.visualize import boxes_for_drawing
from tests.conftest import TRACKS, VIEWS, assert_one_line_error, write_frame
from tests.tiny_models import reference_logits, save_adapter, save_clip
from viewer.error_analysis import AnsweredQuestion
from viewer.likelihood import compute_probabilities
from viewer.report.cli import report
from viewer.report.collect import suspected_label_errors, top_errors

CURVE = [
    {"loss": 2.0, "step": 1},
    {"loss": 0.5, "step": 2},
    {"eval_accuracy": 40.0, "eval_accuracy_ego": 20.0, "step": 2},
]
SCENE = Scene("abyss", (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 17, 48))))


@pytest.fixture
def checkpoints(tmp_path, nano_folder):
    """Save a VLM with a training log, and a CLIP; return their folders."""
    save_adapter(nano_folder, tmp_path / "vlm")
    (tmp_path / "vlm" / "training.json").write_text(json.dumps({"curve": CURVE}))
    save_clip(nano_folder, tmp_path / "clip")
    return tmp_path / "vlm", tmp_path / "clip"


def write_page(call, data, checkpoints, output) -> tuple[str, str]:
    """Run the command: (the page, its output)."""
    vlm, clip = checkpoints
    status, out, err = call((report,), "report", vlm, "--data", data, "--clip", clip, "--output", output)
    assert status == 0, err
    return (output / "index.html").read_text(encoding="utf-8"), out


def test_page_is_complete_and_self_contained(call, tiny_data, checkpoints, tmp_path):
    """It has every section with its plots, no URL, script or font, is below 5 MB, and names are escaped."""
    for number in range(24):  # enough views for multiple-choice questions
        write_frame(tiny_data / "valid", f"000b{number:x}"[-5:], list(TRACKS)[number % 5], shift=number)
    info = tiny_data / "valid" / "000a0_info.json"
    info.write_text(info.read_text().replace("zengarden", "zen<b>garden"))
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[0] == "Accuracy by question type" and titles[-1] == "Size and speed" and len(titles) == 8
    for name in (
        *("Accuracy of the VLM by question type", "Accuracy of CLIP by caption type", "Confusion matrix: ego kart"),
        *("Confusion matrix: track", "VLM, loss", "VLM, accuracy", "whether train has", "all of a view"),
    ):
        assert name in page, name
    assert not re.search(r"https?:|<script|<link|@import|@font-face|url\((?!#)|src=", page)
    assert set(re.findall(r'href="(.{5})', page)) <= {"data:"} | set(re.findall(r'href="(#.{4})', page))
    assert len(page) < 5_000_000 and str(tmp_path / "report" / "index.html") in out
    assert "zen&lt;b&gt;garden" in page and "zen<b>" not in page
    assert page.count("<article>") == page.count("data:image/jpeg;base64,") == 24 + 12
    assert "mathdefault" not in page and ">-0.0" not in page  # numbers are readable
    assert "#010203" not in page  # text takes the page's colour


def test_small_split_gets_a_page_without_clip(call, tiny_data, checkpoints, tmp_path):
    """Six views are too few for multiple choice, and there is no training split; messages say so."""
    for info in (tiny_data / "train").glob("*_info.json"):
        info.unlink()
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    assert "CLIP is not evaluated: " in out and "no comparison with the training split: " in out
    assert "Accuracy of CLIP" not in page and "whether train has" not in page
    assert page.count("<article>") == 6 + 6  # one per view in either list


def test_missing_input_is_named_in_one_line(call, tiny_data, checkpoints, tmp_path):
    """Without the split or the checkpoint no page is written."""
    vlm, clip = checkpoints
    flags = ("--data", tiny_data, "--clip", clip, "--output", tmp_path / "report")
    assert_one_line_error(call((report,), "report", vlm, "--split", "none", *flags), "none")
    assert_one_line_error(call((report,), "report", tmp_path / "nowhere", *flags), "nowhere")
    assert not (tmp_path / "report").exists()


def test_probability_of_an_answer_is_the_product_over_its_tokens(vlm, views):
    """It is the same packed with others, alone, and by a plain forward pass."""
    question, answers = "What track is this?", ("abyss", "gran_paradiso_island")
    path = str(views[0])
    packed = compute_probabilities(vlm, {path: [(question, a) for a in answers], str(views[1]): [(question, "tux")]})
    for answer in answers:
        pair = question, answer
        probability = packed[path][pair]
        assert compute_probabilities(vlm, {path: [pair]})[path] == {pair: pytest.approx(probability, rel=1e-3)}
        question_ids, answer_ids = vlm.tokens.question(question), vlm.tokens.answer(answer)
        ids = [*vlm.tokens.prefix, *question_ids, *answer_ids]
        with torch.inference_mode():
            logits = reference_logits(vlm, views[0], ids)
        places = range(len(ids) - len(answer_ids) - 1, len(ids) - 1)
        steps = [logits[at].softmax(-1)[token] for at, token in zip(places, answer_ids, strict=True)]
        assert probability == pytest.approx(float(torch.stack(steps).prod()), rel=1e-3)


def make_answer(image: str, question: str, answer: str, p_answer: float, p_truth: float) -> AnsweredQuestion:
    return AnsweredQuestion(image, SCENE, question, dict(qa_pairs(SCENE))[question], answer, p_truth, p_answer)


def test_top_errors_have_the_least_probable_truth():
    """The least probable truth comes first; a view's other errors and correct answers are left out."""
    ego, total = "What kart is the ego car?", "How many karts are there in the scenario?"
    answers = [
        make_answer("a", ego, "gnu", 0.6, 0.3),
        make_answer("a", total, "1", 0.9, 0.01),
        make_answer("b", ego, "gnu", 0.9, 0.001),
        make_answer("c", ego, "tux", 0.9, 0.9),
    ]
    assert [(row.image, row.answer) for row in top_errors(answers, 5)] == [("b", "gnu"), ("a", "1")]
    assert len(top_errors(answers, 1)) == 1


def test_label_errors_are_suspected_where_the_model_is_confident_and_accurate():
    """At equal confidence, the question type that the model is good at comes first."""
    ego, track = "What kart is the ego car?", "What track is this?"
    correct = [make_answer(f"correct{n}", track, "abyss", 0.99, 0.99) for n in range(20)]
    wrong = [make_answer(f"bad{n}", ego, "gnu", 0.95, 0.01) for n in range(5)]
    found = suspected_label_errors([*wrong, *correct, make_answer("odd", track, "minigolf", 0.95, 0.01)], 2)
    (first, share), (_, second_share) = found
    assert first.image == "odd" and share == pytest.approx(21 / 23) and second_share < 0.4


def test_boxes_have_roles(tiny_data):
    """The ego kart's box is last, so that it is drawn on top; ineligible detections are included."""
    image = next(iter(split_scenes(tiny_data, "valid")))
    frame, view = parse_image_file(image)
    info = read_frame_info(tiny_data / f"{frame}_info.json")
    info["detections"][view].append([1, 4, 0, 0, 16, 16])  # 4x4 pixels of the view
    boxes = boxes_for_drawing(info, view, build_scene(info, view))
    assert [box.role for box in boxes] == ["other", "small", "kart", "ego"]
    assert boxes[-1].name == "nolok" and boxes[-1].corners == VIEWS[0][0] and boxes[1].name == "xue"
