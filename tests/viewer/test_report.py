"""viewer report: one page that needs nothing from elsewhere, and the numbers in it."""

import json
import re

import pytest
import torch

from homework.clip import build_trainable
from homework.labels.eval_sets import split_scenes
from homework.labels.frame_info import read_frame_info
from homework.labels.questions import qa_pairs
from homework.labels.rows import parse_image_file
from homework.labels.scene import Kart, Scene, build_scene
from homework.labels.visualize import boxes_for_drawing
from homework.models.loading import load_base
from homework.training.lora import PeftTrainingModule, add_lora
from tests.conftest import TRACKS, VIEWS, assert_one_line_error, write_frame
from viewer.error_analysis import Asked
from viewer.likelihood import probabilities
from viewer.report.cli import report
from viewer.report.collect import Answer, doubtful_labels, most_wrong

CURVE = [
    {"loss": 2.0, "step": 1},
    {"loss": 0.5, "step": 2},
    {"eval_accuracy": 40.0, "eval_accuracy_ego": 20.0, "step": 2},
]
SCENE = Scene("abyss", (Kart(0, "tux", (60, 40, 90, 71)), Kart(1, "gnu", (10, 20, 17, 48))))


@pytest.fixture
def checkpoints(tmp_path, nano_folder):
    """A VLM's and a CLIP's folder, the first with its training's log."""
    model, _ = load_base(str(nano_folder))
    PeftTrainingModule(add_lora(model, 4, str(nano_folder))).save_adapter(tmp_path / "vlm")
    (tmp_path / "vlm" / "training.json").write_text(json.dumps({"curve": CURVE}))
    torch.manual_seed(0)
    build_trainable(str(nano_folder), 4).save_adapter(tmp_path / "clip")
    return tmp_path / "vlm", tmp_path / "clip"


def write_page(call, data, checkpoints, output) -> tuple[str, str]:
    """(the page, what the command printed)."""
    vlm, clip = checkpoints
    status, out, err = call((report,), "report", vlm, "--data", data, "--clip", clip, "--output", output)
    assert status == 0, err
    return (output / "index.html").read_text(encoding="utf-8"), out


def test_page_has_all_and_fetches_nothing(call, tiny_data, checkpoints, tmp_path):
    """Every part with its plots; not one address, script or font; far below 5 MB; names are escaped."""
    for number in range(24):  # so many views that CLIP can be asked too
        write_frame(tiny_data / "valid", f"000b{number:x}"[-5:], list(TRACKS)[number % 5], shift=number)
    info = tiny_data / "valid" / "000a0_info.json"
    info.write_text(info.read_text().replace("zengarden", "zen<b>garden"))
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles[0] == "Accuracy by kind" and titles[-1] == "Speed and sizes" and len(titles) == 8
    for name in (
        *("Accuracy of the VLM by kind", "Accuracy of CLIP by kind", "Confusion matrix: the ego kart"),
        *("Confusion matrix: the track", "VLM, loss", "VLM, score", "whether train shows", "all of a view"),
    ):
        assert name in page, name
    assert not re.search(r"https?:|<script|<link|@import|@font-face|url\((?!#)|src=", page)
    assert set(re.findall(r'href="(.{5})', page)) <= {"data:"} | set(re.findall(r'href="(#.{4})', page))
    assert len(page) < 5_000_000 and str(tmp_path / "report" / "index.html") in out
    assert "zen&lt;b&gt;garden" in page and "zen<b>" not in page
    assert page.count("<article>") == page.count("data:image/jpeg;base64,") == 24 + 12
    assert "mathdefault" not in page and ">-0.0" not in page  # numbers as one writes them
    assert "#010203" not in page  # the text has the page's colour, whichever that is


def test_a_split_too_small_for_clip_still_gets_a_page(call, tiny_data, checkpoints, tmp_path):
    """Six views are too few for multiple choice; a line says so, and the rest is there. No training split, no table."""
    for info in (tiny_data / "train").glob("*_info.json"):
        info.unlink()
    page, out = write_page(call, tiny_data, checkpoints, tmp_path / "report")
    assert "no questions to CLIP: " in out and "no table by pairs: " in out
    assert "Accuracy of CLIP" not in page and "whether train shows" not in page
    assert page.count("<article>") == 6 + 6  # one a view in either list


def test_what_is_missing_is_named_in_one_line(call, tiny_data, checkpoints, tmp_path):
    """No such split, no such checkpoint: no page, no half of one."""
    vlm, clip = checkpoints
    flags = ("--data", tiny_data, "--clip", clip, "--output", tmp_path / "report")
    assert_one_line_error(call((report,), "report", vlm, "--split", "none", *flags), "none")
    assert_one_line_error(call((report,), "report", tmp_path / "nowhere", *flags), "nowhere")
    assert not (tmp_path / "report").exists()


def test_probability_of_an_answer_is_that_of_its_tokens_one_after_another(vlm, views):
    """Packed beside others or alone, and as transformers' own forward pass gives it."""
    question, answers = "What track is this?", ("abyss", "gran_paradiso_island")
    path = str(views[0])
    packed = probabilities(vlm, {path: [(question, a) for a in answers], str(views[1]): [(question, "tux")]})
    for answer, probability in zip(answers, packed[path], strict=True):
        assert probabilities(vlm, {path: [(question, answer)]})[path] == pytest.approx([probability], rel=1e-3)
        asked, answered = vlm.tokens.question(question), vlm.tokens.answer(answer)
        ids = torch.tensor([[*vlm.tokens.prefix, *asked, *answered]])
        with torch.inference_mode():
            logits = vlm.model(input_ids=ids, pixel_values=vlm.pixel_values([path])).logits[0]
        places = range(ids.shape[1] - len(answered) - 1, ids.shape[1] - 1)
        steps = [logits[at].softmax(-1)[token] for at, token in zip(places, answered, strict=True)]
        assert probability == pytest.approx(float(torch.stack(steps).prod()), rel=1e-3)


def answer(image: str, question: str, said: str, own: float, true: float) -> Answer:
    truth = dict(qa_pairs(SCENE))[question]
    return Answer(image, Asked(SCENE, question, truth, said), own, true)


def test_most_wrong_first_and_one_a_view():
    """The truth that is held for least likely leads; a view's second wrong answer and right ones are left out."""
    ego, total = "What kart is the ego car?", "How many karts are there in the scenario?"
    answers = [
        answer("a", ego, "gnu", 0.6, 0.3),
        answer("a", total, "1", 0.9, 0.01),
        answer("b", ego, "gnu", 0.9, 0.001),
        answer("c", ego, "tux", 0.9, 0.9),
    ]
    assert [(one.image, one.asked.answer) for one in most_wrong(answers, 5)] == [("b", "gnu"), ("a", "1")]
    assert len(most_wrong(answers, 1)) == 1


def test_a_label_is_doubted_where_the_model_is_sure_and_mostly_right():
    """Of two answers that are as sure, the one of the kind that the model is good at comes first."""
    ego, track = "What kart is the ego car?", "What track is this?"
    right = [answer(f"right{n}", track, "abyss", 0.99, 0.99) for n in range(20)]
    bad = [answer(f"bad{n}", ego, "gnu", 0.95, 0.01) for n in range(5)]
    doubtful = doubtful_labels([*bad, *right, answer("odd", track, "minigolf", 0.95, 0.01)], 2)
    (first, share), (_, second_share) = doubtful
    assert first.image == "odd" and share == pytest.approx(21 / 23) and second_share < 0.4


def test_boxes_say_what_they_are(tiny_data):
    """Ego last, so that it is drawn on top; what counts no kart is there too."""
    image = next(iter(split_scenes(tiny_data, "valid")))
    frame, view = parse_image_file(image)
    info = read_frame_info(tiny_data / f"{frame}_info.json")
    info["detections"][view].append([1, 4, 0, 0, 16, 16])  # 4x4 pixels of the view
    boxes = boxes_for_drawing(info, view, build_scene(info, view))
    assert [box.role for box in boxes] == ["other", "small", "kart", "ego"]
    assert boxes[-1].name == "nolok" and boxes[-1].corners == VIEWS[0][0] and boxes[1].name == "xue"
