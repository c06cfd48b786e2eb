"""Test training and inference on a randomly initialised SmolVLM-256M. Slow: 256 million parameters."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.random_smolvlm import write
from homework import clip, finetune
from homework.base_vlm import BaseVLM
from homework.labels.rows import VQADataset
from homework.models.clip import CLIP, tokenize
from homework.models.images import clip_pixels
from homework.models.loading import load_processor
from homework.utils.images import open_image

# "What kart is the ego car?" by SmolVLM's own processor: (512 / 16)^2 / 4^2 = 64 tokens are the image's
PROMPT_IDS = [
    *(1, 11126, 42, 49189, 49152, *[49190] * 64, 49189),
    *(1780, 501, 434, 314, 260, 21693, 1076, 47, 49279, 198, 9519, 9531, 42),
]


@pytest.fixture(scope="module")
def smolvlm_folder(tmp_path_factory) -> Path:
    """Write a base with SmolVLM-256M-Instruct's config and random weights."""
    folder = tmp_path_factory.mktemp("bases") / "smolvlm_256m"
    write(output=folder)
    return folder


@pytest.mark.slow
def test_smolvlm_runs(smolvlm_folder, no_progress, tmp_path):
    """Fine-tuning, saving, loading, answering and CLIP work with SmolVLM's config."""
    model = AutoModelForImageTextToText.from_pretrained(smolvlm_folder, dtype=torch.bfloat16)
    assert 250e6 < sum(p.numel() for p in model.parameters()) < 260e6
    del model
    processor = load_processor(str(smolvlm_folder))
    image = open_image(next((no_progress / "train").glob("*_im.jpg")))
    assert processor.image_processor([[image]], return_tensors="pt")["pixel_values"].shape == (1, 1, 3, 512, 512)

    settings = {"base": str(smolvlm_folder), "data": str(no_progress), "steps": 1, "batch_size": 1, "rank": 8}
    finetune.train(**settings, output=str(tmp_path / "vlm"), run_dir=str(tmp_path / "run_vlm"))
    vlm = BaseVLM(tmp_path / "vlm")
    assert vlm.tokens.prefix + vlm.tokens.question("What kart is the ego car?") == PROMPT_IDS
    assert sum(p.numel() for p in vlm.model.parameters()) < 300e6
    row = VQADataset("valid_grader", no_progress)[0]
    answer = vlm.answer([row["image_path"]], [row["question"]])
    assert answer == vlm.generate([row["image_path"]], [row["question"]])[0]
    del vlm

    clip.train(**settings, output=str(tmp_path / "clip"), run_dir=str(tmp_path / "run_clip"))
    loaded = clip.load(tmp_path / "clip")
    assert type(loaded.model) is CLIP and sum(p.numel() for p in loaded.model.parameters()) < 300e6
    texts = tokenize(["tux is the ego car.", "The track is hacienda."], processor.tokenizer)
    with torch.inference_mode():
        image_features, text_features, _ = loaded(clip_pixels([image]).bfloat16(), **texts)
    assert image_features.shape == (1, 128) and text_features.shape == (2, 128)
    assert torch.allclose(image_features.float().norm(dim=-1), torch.ones(1), atol=1e-2)
