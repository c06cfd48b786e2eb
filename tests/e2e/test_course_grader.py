"""Test a submission with a base of its own against every call of the course's grader."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from homework import clip, finetune
from homework.models import loading
from tests.tiny_models import save_tiny_nano

ROOT = Path(__file__).parents[2]

# The grader's calls, with torchvision's two transforms written out; `argv` holds the submission's folder.
GRADER = """
import importlib, json, os, sys
from pathlib import Path

sys.modules["tyro"] = sys.modules["msgspec"] = None  # needed by commands and the data pipeline only
watched, events = str(Path(sys.argv[1])), []

def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        mode, flags = args[1] or "", args[2] or 0
        writes = any(letter in mode for letter in "wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        path = os.path.abspath(os.fsdecode(args[0]))
        if writes and (path.startswith(watched) or path.startswith(os.path.realpath(watched + "/data"))):
            events.append(("write", path))
    elif event in ("os.remove", "os.rename", "os.mkdir") and str(args[0]).startswith(watched):
        events.append((event, str(args[0])))
    elif event == "socket.connect":
        events.append((event, str(args[1])))

sys.addaudithook(watch)
sys.path.insert(0, watched)
module = importlib.import_module("homework")
assert Path(module.__file__).is_relative_to(watched), module.__file__

import torch
import numpy as np
from PIL import Image
from transformers import AutoTokenizer

report = {}
vlm = module.load_vlm()
vlm.model.eval()
report["vlm_parameters"] = sum(p.numel() for p in vlm.model.parameters())
dataset = module.data.VQADataset("valid_grader")
result = module.data.benchmark(vlm, dataset, 128)
report["vlm_accuracy"] = result.accuracy
report["samples"] = len(result.samples)

clip = module.load_clip()
clip.model.eval()
report["clip_parameters"] = sum(p.numel() for p in clip.model.parameters())
device = next(clip.model.parameters()).device
# the grader loads SmolVLM's processor from the hub; the submission's tokenizer has the same ids
tokenizer = AutoTokenizer.from_pretrained(Path(watched) / "homework" / "weights" / "tux_nano")
correct, rows = 0, module.data.MultiChoiceQADataset("valid_grader")
for row in rows:
    image = Image.open(row["image_path"]).convert("RGB")
    width, height = image.size
    image = image.resize((int(192 * width / height), 192), Image.Resampling.BILINEAR)
    left = int(round((image.size[0] - 192) / 2))
    image = image.crop((left, 0, left + 192, 192))
    pixels = (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - 0.5) / 0.5
    pixels = pixels.unsqueeze(0).to(device).bfloat16()
    texts = [candidate + tokenizer.eos_token for candidate in row["candidates"]]
    text = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
    with torch.inference_mode():
        text = {name: values.to(device) for name, values in text.items()}
        image_features, text_features, scale = clip(pixels, text["input_ids"], text["attention_mask"])
    assert image_features.shape == (1, text_features.shape[1]) and text_features.shape[0] == 5 and scale > 0
    for feature in (image_features, text_features):
        assert torch.allclose(feature.float().norm(dim=-1), torch.ones(len(feature)), atol=1e-2)
    correct += int(torch.matmul(image_features, text_features.T).argmax(dim=-1)) == row["correct_index"]
report["clip_accuracy"], report["questions"], report["events"] = correct / len(rows), len(rows), events
print("REPORT", json.dumps(report))
"""


@pytest.fixture
def submission(tiny_data, no_progress, tmp_path, monkeypatch) -> Path:
    """Make a folder with `homework/` (code, a tiny base, trained adapters) and a link to the data beside it."""
    package = tmp_path / "unpacked" / "homework"
    shutil.copytree(ROOT / "homework", package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    base = package / "weights" / "tux_nano"
    save_tiny_nano(base)
    shutil.copy(Path(loading.DEFAULT_BASE) / "tokenizer_config.json", base)
    # as if trained by the submission itself, whose bundled base this is
    monkeypatch.setattr(loading, "DEFAULT_BASE", str(base))
    settings = {"base": str(base), "data": str(no_progress), "steps": 2, "batch_size": 3, "rank": 4}
    for part, name in ((finetune, "vlm"), (clip, "clip")):
        part.train(**settings, output=str(package / "weights" / name), run_dir=str(tmp_path / f"run_{name}"))
    (package.parent / "data").symlink_to(tiny_data)
    return package.parent


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Map every file and folder to its size and modification time."""
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))}


def test_course_grader_runs_through(submission, tiny_data, tmp_path):
    """Every call of the course's grader works offline, from another directory; nothing is written."""
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    elsewhere.mkdir()
    home.mkdir()
    before = files(submission), files(tiny_data)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", GRADER, str(submission)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("REPORT")).split(" ", 1)[1])
    assert report["samples"] == 5 and report["questions"] == 6
    assert 0 <= report["vlm_accuracy"] <= 1 and 0 <= report["clip_accuracy"] <= 1
    assert 0 < report["clip_parameters"] <= 300_000_000 and 0 < report["vlm_parameters"] <= 300_000_000
    assert report["events"] == []
    assert (files(submission), files(tiny_data)) == before
    assert not list(elsewhere.iterdir())


def test_package_exports_the_names_of_the_contract():
    """`homework` has the names that a grader uses as attributes."""
    import homework

    for name in ("BaseVLM", "VQADataset", "benchmark", "train", "load_vlm", "load_clip", "data"):
        assert hasattr(homework, name), name
    assert callable(homework.load_vlm) and callable(homework.load_clip)
    with pytest.raises(AttributeError):
        homework.nothing  # noqa: B018
