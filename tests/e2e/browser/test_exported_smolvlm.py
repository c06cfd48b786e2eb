"""Test that transformers.js runs what `export onnx` writes: a tiny SmolVLM with LoRA answers as in PyTorch."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from export.web.runtime import copy_runtime
from homework.base_vlm import BaseVLM
from homework.models.loading import load_base
from homework.training.lora import PeftTrainingModule
from tests.export.conftest import in_export_env  # noqa: F401
from tests.tiny_models import randomly_adapted

from .driving import ROOT, hosting

pytestmark = pytest.mark.slow

TRANSFORMERS_JS = "4.3.2"
QUESTION = "What track is this?"
PAGE = """<!DOCTYPE html><link rel="icon" href="data:,">
<script type="importmap">{"imports": {
  "onnxruntime-web/webgpu": "./ort.wasm.bundle.min.mjs", "onnxruntime-common": "./ort.wasm.bundle.min.mjs"}}</script>
<script type="module">
import { AutoModelForImageTextToText, AutoProcessor, env, load_image } from "./transformers.web.min.js";
Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: "models/" });
Object.assign(env.backends.onnx.wasm, {
  wasmPaths: { wasm: new URL("ort-wasm-simd-threaded.wasm", location.href).href }, numThreads: 1, proxy: false });
window.ask = async (text) => {
  const processor = await AutoProcessor.from_pretrained("exported");
  const model = await AutoModelForImageTextToText.from_pretrained("exported", { dtype: "fp32", device: "wasm" });
  const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text }] }];
  const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
  const inputs = await processor(prompt, [await load_image("view.png")]);
  const ids = await model.generate({ ...inputs, max_new_tokens: 24, do_sample: false });
  const answer = ids.slice(null, [inputs.input_ids.dims.at(-1), null]);
  return { prompt: inputs.input_ids.tolist()[0].map(Number), answer: answer.tolist()[0].map(Number) };
};
</script>"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Make a page with transformers.js from npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm to download transformers.js. Run `apt install npm`")
    package = f"@huggingface/transformers@{TRANSFORMERS_JS}"
    subprocess.run([npm, "pack", "--silent", package, "--pack-destination", tmp_path], check=True, capture_output=True)
    folder = tmp_path / "page"
    folder.mkdir()
    copy_runtime(ROOT / "runs/npm", folder)
    (archive,) = tmp_path.glob("huggingface-transformers-*.tgz")
    with tarfile.open(archive) as package:
        script = package.extractfile("package/dist/transformers.web.min.js").read()
    (folder / "transformers.web.min.js").write_bytes(script)
    (folder / "index.html").write_text(PAGE)
    return folder


def test_transformers_js_answers_as_pytorch(in_export_env, folder, page, smol_folder, views, tmp_path):  # noqa: F811
    adapter = tmp_path / "adapter"
    PeftTrainingModule(randomly_adapted(load_base(str(smol_folder))[0], smol_folder)).save_adapter(adapter)
    in_export_env("-m", "export", "onnx", adapter, "--output", folder / "models/exported", OMP_NUM_THREADS="1")
    # of the vision encoder's size: the browser resizes with other filters than Pillow
    Image.open(views[0]).resize((64, 64)).save(folder / "view.png")
    vlm = BaseVLM(adapter)
    with hosting(folder) as url:
        page.goto(url)
        page.wait_for_function("window.ask")
        result = page.evaluate("ask", QUESTION)
    assert result["prompt"] == [*vlm.tokens.prefix, *vlm.tokens.question(QUESTION)]
    assert [vlm.tokens.decode(result["answer"])] == vlm.answer([folder / "view.png"], [QUESTION])
