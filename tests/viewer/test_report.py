"""Test viewer report: a self-contained page, and the numbers in it."""

import json
import math
import re
import shutil
import time
from collections import Counter

import pytest
import torch

from homework.labels.eval_sets import split_scenes
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import qa_pairs
from homework.labels.rows import parse_image_file
from homework.labels.scene import Kart, Scene, build_scene
from homework.labels.visualize import boxes_for_drawing
from homework.models.sizes import ParameterCounts
from homework.training.likelihood import compute_probabilities
from tests.conftest import TRACKS, VIEWS, assert_one_line_error, write_frame
from tests.tiny_models import reference_logits, save_adapter, save_clip
from viewer.answers import AnsweredQuestion
from viewer.report.cli import report
from viewer.report.collect import ModelSummary, ReportData, read_commit, suspected_label_errors, top_errors
from viewer.report.html import crop_window, render_page
from viewer.report.plots import plot_training_curves

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
    """It has every section with its plots, no URL, font or other file, is below 5 MB, and names are escaped."""
    for number in range(24):  # enough views for multiple-choice questions
        write_frame(tiny_data / "valid", f"000b{number:x}"[-5:], list(TRACKS)[number % 5], shift=number)
    info = tiny_data / "valid" / "000a0_info.json"
    info.write_text(info.read_text().replace("zengarden", "zen<b>garden"))
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    titles = re.findall("<section.*?<h2>(.*?)</h2>", page)
    assert titles[:3] == ["Question types", "What makes it hard", "Errors by cause"] and len(titles) == 7
    contents = re.findall('<a href="#(.*?)">', page)
    assert len(contents) > 10 and set(contents) - {"top"} <= set(re.findall('id="(.*?)"', page))
    for name in (
        *("VLM by question type", "CLIP by caption type", "% right by type, with 95 % intervals", "Ego kart by answer"),
        *("Track by answer", "VLM: training loss", "whether train has", "all of a view", "Suspected label errors"),
    ):
        assert name in page, name
    assert "VLM: % right while training" not in page  # CURVE has a single point of it
    assert not re.search(r"https?:|<link|@import|@font-face|url\((?!#)|src=", page)
    assert set(re.findall(r'href="(.)', page.replace("data:image", "#"))) == {"#"}
    assert len(page) < 5_000_000 and str(tmp_path / "report" / "index.html") in out
    assert "zen&lt;b&gt;garden" in page and "zen<b>" not in page
    assert "mathdefault" not in page and ">-0.0" not in page  # numbers are readable
    assert "#010203" not in page  # text takes the page's colour


def test_first_screen_gives_verdict_scores_origin_and_examples(call, tiny_data, checkpoints, tmp_path):
    """Two sentences, bars of this model beside its base, chance and published results, and three wrong answers."""
    page, _ = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    verdict = re.search('<p class="verdict">(.*?)</p>', page)[1]
    assert len(re.findall(r"\.( |$)", verdict)) == 2 and re.search(r"\(chance [\d.]+ %, its base [\d.]+ %\)", verdict)
    facts = re.search('<p class="note">(written .*?)</p>', page)[1]
    assert f"written {time.strftime('%Y-')}" in facts and f"commit {read_commit()}" in facts and "base " in facts
    bars = dict(re.findall("<div.*?><span>(.*?)</span><i .*?</i><b>(.*?)</b></div>", page))
    assert bars["best published, official"] == "74.2"
    assert bars.keys() >= {"this model, valid", "this model, valid_grader (5)", "its base, without LoRA", "chance"}
    first = page[page.index('class="first"') : page.index("<section")]
    wrong = re.findall(r"✗ (.*?)</span> .*?truth: <span class=\"right\">(.*?)<", first, re.DOTALL)
    assert len(wrong) == 3 and all(answer != truth for answer, truth in wrong)


def test_cards_have_a_crop_and_named_boxes_and_embed_each_image_once(call, tiny_data, checkpoints, tmp_path):
    """Beside the whole view stands a smaller window of it; both refer to one embedded image."""
    page, _ = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    images = re.findall('<image id="(.*?)"', page)
    assert len(images) == len(set(images)) == page.count("data:image/jpeg;base64,")
    assert set(re.findall('<use href="#(.*?)"', page)) == set(images)
    card = page[page.index('class="cards"') :]
    card = card[: card.index("</article>")]
    whole, crop = re.findall(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', card)
    assert whole == ("0", "0", "150", "100") and float(crop[2]) <= 90
    assert "(ego)</text>" in card and '<rect class="ego"' in card


def test_crop_shows_the_deciding_kart():
    """It lies inside the view and holds the kart's box; the track has no crop."""
    answer = make_answer("a", "Is gnu to the left or right of the ego car?", "right", 0.9, 0.1)
    x, y, width, height = crop_window(answer)
    x1, y1, x2, y2 = SCENE.others[0].box
    assert 0 <= x <= x1 and x2 <= x + width <= 150 and 0 <= y <= y1 and y2 <= y + height <= 100
    assert crop_window(make_answer("a", "What track is this?", "hacienda", 0.9, 0.1)) is None


def test_small_split_gets_a_page_without_clip(call, tiny_data, checkpoints, tmp_path):
    """Six views are too few for multiple choice, and there is no training split; messages say so."""
    for info in (tiny_data / "train").glob("*_info.json"):
        info.unlink()
    shutil.rmtree(tiny_data / "valid_grader")
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    for words in ("CLIP is not evaluated: ", "no comparison with the training split: ", "no score on the official "):
        assert words in out
    assert "CLIP by caption type" not in page and "whether train has" not in page
    assert "this model, valid_grader" not in page


def test_a_base_is_not_compared_with_itself(call, nano_folder, tiny_data, checkpoints, tmp_path):
    """A checkpoint without an adapter has no base."""
    page, _ = write_page(call, tiny_data, (nano_folder, checkpoints[1]), tmp_path / "report")
    assert "a base without LoRA" in page and "its base" not in page


def test_a_perfect_model_gets_a_page_without_errors(tiny_data):
    """Its verdict says so, and three right answers are shown."""
    scenes = split_scenes(tiny_data, "valid")
    answers = [
        AnsweredQuestion(image, scene, question, truth, truth, 1.0, 1.0)
        for image, scene in scenes.items()
        for question, truth in qa_pairs(scene)
    ]
    model = ModelSummary("vlm", None, ParameterCounts(1, 1, 0), 0.0, 1.0, {}, math.nan, 0)
    page = render_page(ReportData("valid", tiny_data, answers, [], Counter(), {"VLM": model}, []))
    assert "The VLM makes no error." in page and "answers are right." in page
    assert page.count("<article") == page.count("✓ ") == 3 and "✗" not in page and "% of each row" not in page


def test_accuracy_axes_start_at_zero():
    """A small difference looks small, and a curve of one point is left out."""
    plots = dict(plot_training_curves("VLM", [{"eval_accuracy": 99.0, "step": 1}, {"eval_accuracy": 99.5, "step": 2}]))
    assert list(plots) == ["VLM: % right while training"]
    labels = re.findall(r"<text [^>]*>([\d.]+)</text>", plots["VLM: % right while training"])
    assert {"0", "20", "100"} <= set(labels)
    assert plot_training_curves("VLM", CURVE[1:]) == []


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
