"""Test the page's scripts in Node against the Python code that they follow, and the pinned runtime."""

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from export.web import runtime
from export.web.command import STATIC, web
from export.web.config import page_config, vocabulary, write_merges
from homework.models.clip import CLIP
from homework.models.images import clip_pixels, normalise, to_view_size
from homework.models.loading import load_base
from homework.models.prompts import PromptTokens
from homework.models.shared_vocab import SharedRowHead
from homework.utils.errors import InputError
from tests.conftest import assert_one_line_error
from tests.tiny_models import save_adapter, save_clip

TEXTS = [
    "What kart is the ego car?",
    "Is sara_the_racer to the left or right of the ego car?",
    "There are 10 karts in the scene.<end_of_utterance>",
    "  two  spaces,\ttabs\n\nand lines  ",
    "I'll say it's 2024's 3½ ² Ⅷ: naïve café, 日本語, Ελλάδα, 🐧👩‍👩‍👧!",
    "<|im_start|>User:<image>x<end_of_utterance>\nAssistant:",
    "",
    "a\u00a0b\u2003c\u200bd  \r\n e",
    "AT&T's R2-D2 …— “quoted” x_y__z 100%",
]


@pytest.fixture
def node(tmp_path):
    """Return `node(script, value)`: runs a module beside the page's scripts, which gets `value` and prints JSON."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("no Node.js. Run `apt install nodejs`")
    folder = tmp_path / "page"
    shutil.copytree(STATIC, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script: str, value):
        (folder / "value.json").write_text(json.dumps(value))
        head = "import { readFileSync } from 'node:fs'; const value = JSON.parse(readFileSync('value.json', 'utf8'));\n"
        (folder / "test.js").write_text(head + script)
        done = subprocess.run([program, "test.js"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def shipped():
    """The shipped base's model, processor and output layer."""
    model, processor = load_base()
    return model, processor, SharedRowHead(model.get_output_embeddings().weight)


TOKENIZE = """
import { Tokenizer } from "./tokenizer.js";
const tokenizer = new Tokenizer(value.merges, value.vocabulary);
console.log(JSON.stringify({
  tokens: value.texts.map((text) => tokenizer.tokenize(text)),
  rows: value.texts.map((text) => tokenizer.encode(text)),
  decoded: value.answers.map((rows) => tokenizer.decode(rows)),
}));
"""


def test_the_pages_tokenizer_equals_the_shipped_one(node, shipped, tmp_path):
    """Tokens of any text, special ones included, their rows, and the text of answers."""
    _, processor, head = shipped
    backend, tokens = processor.tokenizer.backend, PromptTokens(processor)
    write_merges(processor, tmp_path / "merges.txt")
    merges = (tmp_path / "merges.txt").read_text()
    ids = [processor.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    answers = [tokens.answer(text) for text in ("gran_paradiso_island", "10", "front and left")]
    values = {"merges": merges, "vocabulary": vocabulary(processor, head), "texts": TEXTS}
    result = node(TOKENIZE, values | {"answers": [head.row_of_token[torch.tensor(row)].tolist() for row in answers]})
    assert result["tokens"] == [[backend.id_to_token(token) for token in row] for row in ids]
    assert result["rows"] == [head.row_of_token[torch.tensor(row, dtype=torch.long)].tolist() for row in ids]
    assert [text.strip() for text in result["decoded"]] == [tokens.decode(row) for row in answers]


PIXELS = """
import { cropPixels, viewPixels } from "./pixels.js";
const image = { data: Uint8Array.from(value.data), width: value.width, height: value.height };
console.log(JSON.stringify({ view: [...viewPixels(image)], crop: [...cropPixels(image)] }));
"""


@pytest.mark.parametrize("size", [(150, 100), (600, 400), (100, 131), (77, 300), (1000, 97)])
def test_pixels_equal_pillows_and_pytorchs(node, size):
    """The VLM's view, and CLIP's crop as the vision encoder resizes it: equal but for rounding to 8 bits.

    Pillow resizes the width first, and since version 13 sometimes the height; then other values are rounded.
    """
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    result = node(PIXELS, {"data": noise.reshape(-1).tolist(), "width": size[0], "height": size[1]})
    view = torch.tensor(result["view"]).view(3, 100, 150)
    width_first = to_view_size(image.resize((150, size[1]), Image.Resampling.LANCZOS))
    assert torch.allclose(view, normalise(width_first), atol=1e-6)
    assert (view - normalise(to_view_size(image))).abs().mean() < 0.01
    crop = F.interpolate(clip_pixels([image]), (100, 100), mode="bilinear", antialias=True)[0]
    assert torch.allclose(torch.tensor(result["crop"]).view(3, 100, 100), crop, atol=1e-5)


def test_the_prompts_rows_name_the_image_tokens_in_order(shipped):
    model, processor, head = shipped
    config = page_config(model, CLIP.from_vlm(model), processor, head)
    num_rows, prefix = len(head.table), PromptTokens(processor).prefix
    image_rows = [row for row in config["prefix"] if row >= num_rows]
    assert image_rows == list(range(num_rows, num_rows + processor.num_image_tokens))
    texts = [head.token_of_row[row].item() for row in config["prefix"] if row < num_rows]
    assert texts == [token for token in prefix if token != model.config.image_token_id]
    assert sum(config["numTokens"]) == model.config.text.vocab_size


def test_another_runtime_is_refused(tmp_path):
    """The archive must have the pinned digest, and nothing is unpacked from another one."""
    with tarfile.open(tmp_path / runtime.ARCHIVE, "w:gz") as archive:
        archive.add(__file__, "package/dist/ort.wasm.bundle.min.mjs")
    with pytest.raises(InputError, match="not onnxruntime-web"):
        runtime.copy_runtime(tmp_path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [runtime.ARCHIVE]


def test_without_npm_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="install npm"):
        runtime.copy_runtime(tmp_path, tmp_path)


def test_a_folder_of_the_users_is_not_replaced(call, tmp_path, monkeypatch):
    monkeypatch.setattr("export.web.command.require", lambda *_: None)
    (tmp_path / "thesis.txt").touch()
    assert_one_line_error(call((web,), "web", "--output", tmp_path), "refusing to replace")
    assert [Path(file).name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("vlm", "clip"), [("tiny", "tiny_smolvlm"), ("tiny_smolvlm", "tiny"), ("tiny", "clip")])
def test_checkpoints_of_other_bases_are_refused(call, nano_folder, smol_folder, tmp_path, monkeypatch, vlm, clip):
    """SmolVLM in either place, or two TuxNanos that differ, before anything is written."""
    monkeypatch.setattr("export.web.command.require", lambda *_: None)
    folders = {"tiny": nano_folder, "tiny_smolvlm": smol_folder}
    save_adapter(folders[vlm], tmp_path / "vlm")
    if clip in folders:
        save_clip(folders[clip], tmp_path / "clip")
    checkpoint = tmp_path / "clip" if clip in folders else clip
    flags = ("--vlm", tmp_path / "vlm", "--clip", checkpoint, "--output", tmp_path / "out")
    assert_one_line_error(call((web,), "web", *flags), "choose")
    assert not (tmp_path / "out").exists()
