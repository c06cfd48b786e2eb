"""Test `export onnx`: its three graphs answer as the adapter does in PyTorch. Slow: in the export environment."""

from pathlib import Path

import pytest

from benchmarks.random_smolvlm import write
from homework.models.loading import load_base
from homework.training.lora import PeftTrainingModule
from tests.conftest import assert_one_line_error
from tests.tiny_models import randomly_adapted, save_adapter

RUN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime, torch
from homework.base_vlm import BaseVLM

checkpoint, folder, image, length = sys.argv[1:]
sessions = {file.stem: onnxruntime.InferenceSession(file) for file in Path(folder, "onnx").iterdir()}
vlm, question = BaseVLM(checkpoint), "What track is this?"
vision, embed, decoder = (sessions[name] for name in ("vision_encoder", "embed_tokens", "decoder_model_merged"))
pixels = vlm.pixel_values([image]).float().numpy()
ids = [*vlm.tokens.prefix, *vlm.tokens.question(question)]
(features,) = vision.run(None, {"pixel_values": pixels})
inputs = embed.run(None, {"input_ids": np.array([ids])})[0]
inputs[0, np.array(ids) == vlm.model.config.image_token_id] = features.reshape(-1, features.shape[-1])
names = [one.name for one in decoder.get_inputs() if one.name.startswith("past")]
shape = [one for one in decoder.get_inputs() if one.name == names[0]][0].shape
cache = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name in names}
steps, answer, position = [], [], 0
while len(answer) < int(length):
    total = position + inputs.shape[1]
    positions = np.arange(position, total)[None]
    logits, *present = decoder.run(None, {"inputs_embeds": inputs, "attention_mask": np.ones((1, total), np.int64),
                                          "position_ids": positions, **cache})
    cache, position = dict(zip(names, present)), total
    steps.append(logits[0, -1])
    answer.append(int(logits[0, -1].argmax()))
    (inputs,) = embed.run(None, {"input_ids": np.array([[answer[-1]]])})
values = {"input_ids": torch.tensor([ids + answer[:-1]]), "pixel_values": vlm.pixel_values([image])}
with torch.inference_mode():
    expected = vlm.model(**values).logits[0, len(ids) - 1 :].float().numpy()
print(json.dumps({
    "error": float(np.abs(np.array(steps) - expected).max() / expected.std()),
    "agreement": float(np.mean(expected.argmax(-1) == np.array(answer))),
}))
"""


def check(in_export_env, base: Path, image: Path, folder: Path, length: int) -> dict:
    """Export a base with random LoRA, and compare its graphs with PyTorch, decoding `length` tokens."""
    PeftTrainingModule(randomly_adapted(load_base(str(base))[0], base)).save_adapter(folder / "adapter")
    in_export_env("-m", "export", "onnx", folder / "adapter", "--output", folder / "onnx", OMP_NUM_THREADS="1")
    return in_export_env(folder / "adapter", folder / "onnx", image, length, script=RUN, OMP_NUM_THREADS="1")


@pytest.mark.slow
def test_graphs_equal_pytorch(in_export_env, smol_folder, views, tmp_path):
    """Logits of each step with the cache, LoRA merged, weights in float16."""
    result = check(in_export_env, smol_folder, views[0], tmp_path, 12)
    assert result["error"] < 0.05 and result["agreement"] == 1
    folder = tmp_path / "onnx"
    assert {"config.json", "tokenizer.json", "onnx"} <= {file.name for file in folder.iterdir()}


@pytest.mark.slow
def test_graphs_of_smolvlms_size_equal_pytorch(in_export_env, views, tmp_path):
    """The real configuration with random weights: 256 million parameters."""
    write(output=tmp_path / "base")
    result = check(in_export_env, tmp_path / "base", views[0], tmp_path, 3)
    assert result["error"] < 0.05


def test_tux_nano_is_refused(call, nano_folder, tmp_path, monkeypatch):
    from export.idefics3 import onnx

    monkeypatch.setattr("export.idefics3.require", lambda *_: None)
    save_adapter(nano_folder, tmp_path / "adapter")
    result = call((onnx,), "onnx", tmp_path / "adapter", "--output", tmp_path / "out")
    assert_one_line_error(result, "export web")
