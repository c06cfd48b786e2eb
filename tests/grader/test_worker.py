"""The worker's image transform, and that the sandbox changes no answer."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from grader.worker import choose_caption, clip_pixels
from tests.fake_bundle import ROOT, run_grader, write_package

NO_CLIP = "def load_clip(): raise OSError('none')\n"  # so that no process has to import torch


@pytest.mark.parametrize("size", [(150, 100), (192, 192), (100, 151), (601, 400), (37, 91)])
def test_clip_pixels_equal_those_of_training(size):
    images = pytest.importorskip("homework.models.images")
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert clip_pixels(image).shape == (1, 3, 192, 192)
    np.testing.assert_allclose(clip_pixels(image), images.clip_pixels([image]), atol=1e-6)


def test_fake_bundle_scores_the_same_outside_the_sandbox(place, tmp_path):
    package = write_package(tmp_path / "outside" / "homework", NO_CLIP)
    (tmp_path / "outside" / "data").symlink_to(place / "data")
    code = """
import homework
rows, vlm = homework.data.VQADataset("valid_grader"), homework.load_vlm()
answers = [vlm.answer([row["image_path"]], [row["question"]])[0].lower() for row in rows]
print("\\n", sum(a.startswith(row["answer"]) for a, row in zip(answers, rows)) / len(rows))
"""
    outside = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "outside", capture_output=True, text=True)
    report = tmp_path / "report.json"
    run_grader(package, place / "data", "--json", report)
    accuracy = json.loads(report.read_text())["parts"]["vlm"]["accuracy"]
    assert accuracy == float(outside.stdout.splitlines()[-1]) == 0.7


@pytest.mark.slow
def test_shipped_models_answer_the_same_outside_the_sandbox(tiny_data, tmp_path):
    """Every answer of both models: here, and by the grader on their bundle."""
    import bundle
    import homework
    from homework.models.loading import DEFAULT_BASE, load_processor

    bundle.bundle(ROOT / "homework", tmp_path / "mine.zip")
    done = run_grader(tmp_path / "mine.zip", tiny_data, "--json", tmp_path / "r.json")
    assert (done.returncode, done.stderr) == (0, "")
    parts = json.loads((tmp_path / "r.json").read_text())["parts"]
    inside = [[sample["model_answer"] for sample in parts[part]["samples"]] for part in ("vlm", "clip")]
    pairs = homework.data.VQADataset("valid_grader", tiny_data)
    outside = [sample.model_answer for sample in homework.data.benchmark(homework.load_vlm(), pairs).samples]
    clip, tokenizer = homework.load_clip(), load_processor(DEFAULT_BASE).tokenizer
    rows = homework.data.MultiChoiceQADataset("valid_grader", tiny_data)
    choices = [choose_caption(clip, tokenizer, row["image_path"], row["candidates"]) for row in rows]
    assert inside == [outside, choices]
    counts = [sum(p.numel() for p in model.model.parameters()) for model in (homework.load_vlm(), clip)]
    assert counts == [parts["vlm"]["parameters"], parts["clip"]["parameters"]]
