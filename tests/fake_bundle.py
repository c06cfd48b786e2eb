"""Write bundles of fake models that answer by rule and data to grade them on; run the grader."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
TRACKS = [f"track_{number}" for number in range(10)]

# A package with its own data.py and without our base classes. Grey level 20 * n means track_n.
INIT = """
from . import data, models
from .models import load_clip, load_vlm
print("printed on import")
"""
DATA = """
import json
from pathlib import Path
DATA_DIR = Path(__file__).parent.parent / "data"

def read(split, name):
    rows = json.loads((DATA_DIR / split / name).read_text())
    return [{**row, "image_path": str(DATA_DIR / row["image_file"])} for row in rows]

def VQADataset(split):
    return read(split, "balanced_qa_pairs.json")

def MultiChoiceQADataset(split):
    return read(split, "all_mc_qas.json")

def benchmark(vlm, dataset, max_samples):
    for row in reversed(dataset[:max_samples]):  # in another order, one question per call
        vlm.answer([row["image_path"]], [row["question"]])
"""
MODELS = """
import os
class Model:
    def eval(self): return self
    def parameters(self): return iter([Weight()])
class Weight:
    device = "cpu"
    def numel(self): return 1_000_000
class VLM:
    model = Model()
    def answer(self, image_paths, questions):
        assert all(os.path.exists(path) for path in image_paths)
        os.write(1, b"printed while answering")
        return ["Tux, I think" for _ in questions]
class CLIPModel(Model):
    def __call__(self, pixel_values, input_ids, attention_mask):
        import torch
        assert pixel_values.dtype == torch.bfloat16 and pixel_values.shape == (1, 3, 192, 192)
        assert (input_ids[:, -1] == 2).all() and attention_mask.shape == input_ids.shape
        grey = (pixel_values.float().mean() * 0.5 + 0.5) * 255 / 20
        vision = torch.eye(16)[grey.round().long() + 3][None]  # token 3 is track_0
        return vision, torch.eye(16)[input_ids[:, 0]], torch.tensor(1.0)
class CLIP:  # not callable: graders call its model
    model = CLIPModel()
def load_vlm(): return VLM()
def load_clip(): return CLIP()
"""


def write_package(folder, models=""):
    """Write a package whose models are the fake ones, changed by the code `models`."""
    folder.mkdir(parents=True)
    for name, text in {"__init__": INIT, "data": DATA, "models": MODELS + models}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def write_zip(path, package, names=()):
    """Zip a package as `homework/`, with empty files `names` beside it."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.glob("*.py")):
            archive.write(file, f"homework/{file.name}")
        for name in names:
            archive.writestr(name, "")
    return path


def write_data(root):
    """Write data with 10 questions (`Tux, I think` answers 7) and 10 choices (the fake CLIP gets 8)."""
    split = root / "data" / "valid_grader"
    split.mkdir(parents=True)
    (root / "data" / "valid").mkdir()
    for number in range(10):
        image = Image.new("RGB", (150, 100), (20 * number,) * 3)
        image.save(root / "data" / "valid" / f"0000{number}_00_im.jpg", quality=95)
    images = [f"valid/0000{number}_00_im.jpg" for number in range(10)]
    questions = [("What kart is the ego car?", "tux")] * 7 + [("What track is this?", "abyss")] * 3
    pairs = [{"image_file": i, "question": q, "answer": a} for i, (q, a) in zip(images, questions, strict=True)]
    (split / "balanced_qa_pairs.json").write_text(json.dumps(pairs))
    choices = []
    for number, image in enumerate(images):
        candidates = [TRACKS[(number + step) % 10] for step in range(5)]
        choices.append({"image_file": image, "candidates": candidates, "correct_index": int(number >= 8)})
    (split / "all_mc_qas.json").write_text(json.dumps(choices))
    return root / "data"


def write_tokenizer(folder):
    """Write a tokenizer with one token per track, the first of which has id 3."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", "<eos>", *TRACKS]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special).save_pretrained(folder)


def grader_command(bundle, data, *flags):
    """Return the command that grades a bundle."""
    return [*map(str, (sys.executable, "-m", "grader", bundle, "--data", data, *flags))]


def run_grader(bundle, data, *flags, **options):
    """Run the grader to its end; `flags` may shorten its time limit, which is generous for busy machines.

    The line on stderr that describes this kernel's sandbox is left out.
    """
    command = grader_command(bundle, data, "--timeout", 600, *flags)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)
    done.stderr = re.sub(r"\Asandbox: .*\n", "", done.stderr)
    return done
