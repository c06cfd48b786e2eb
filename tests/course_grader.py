"""Make the calls of the course's grader on a submission, with torchvision's two transforms written out.

The argument is the submission's folder. It prints a line `REPORT` with answers, accuracies, and what was written.
"""

# ruff: noqa: E402 - the submission is imported before torch, as there
import importlib
import json
import os
import sys
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

import numpy as np
import torch
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
report["answers"] = [sample.model_answer for sample in result.samples]

clip = module.load_clip().model
clip.eval()
report["clip_parameters"] = sum(p.numel() for p in clip.parameters())
device = next(clip.parameters()).device
# the grader loads SmolVLM's processor from the hub; the submission's tokenizer has the same ids
tokenizer = AutoTokenizer.from_pretrained(Path(watched) / "homework" / "weights" / "tux_nano")
choices, rows = [], module.data.MultiChoiceQADataset("valid_grader")
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
    choices.append(int(torch.matmul(image_features, text_features.T).argmax(dim=-1)))
correct = [choice == row["correct_index"] for choice, row in zip(choices, rows, strict=True)]
report |= {"clip_accuracy": sum(correct) / len(rows), "questions": len(rows), "choices": choices, "events": events}
print("REPORT", json.dumps(report))
