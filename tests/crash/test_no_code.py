"""No code of a checkpoint runs: checks of the source, and a base and an adapter that bring code."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from homework.base_vlm import BaseVLM
from homework.models.loading import load_base, load_model, load_processor
from homework.models.lora_weights import read_adapter_base
from homework.training.lora import PeftTrainingModule, add_lora
from homework.utils.errors import InputError

ROOT = Path(__file__).parents[2]
FOLDERS = ("homework", "grader", "viewer", "benchmarks", "pretrain", "supertux")
TRUST = re.compile(r"trust_remote_code\s*=\s*(?!False\b)")
PICKLE = re.compile(r"\bpickle\.loads?\(|allow_pickle\s*=\s*True|weights_only\s*=\s*False")
TORCH_LOAD = re.compile(r"torch\.load\((?!\w*=)([^()]|\([^()]*\))*\)")
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import Idefics3Config as XConfig, Idefics3ForConditionalGeneration as XModel
"""


def sources() -> list[Path]:
    return [ROOT / "bundle.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]


def test_source_loads_no_code():
    """`trust_remote_code` is False everywhere, nothing is unpickled, and torch.load has `weights_only=True`."""
    for file in sources():
        text = re.sub(r'"""(.|\n)*?"""', "", file.read_text())
        assert not TRUST.search(text) and not PICKLE.search(text), file
        for call in TORCH_LOAD.finditer(text):
            assert "weights_only=True" in call[0], (file, call[0])
    found = sum(bool(TORCH_LOAD.search(file.read_text())) for file in sources())
    assert found >= 2, "the pattern no longer finds calls of torch.load"


@pytest.fixture(scope="module")
def tiny(nano_folder: Path, smol_folder: Path, tmp_path_factory) -> Path:
    """Write both tiny bases and an adapter of each."""
    folder = tmp_path_factory.mktemp("tiny")
    for base, source in (("nano", nano_folder), ("smol", smol_folder)):
        shutil.copytree(source, folder / base)
        model = add_lora(load_model(str(folder / base)), 2, str(folder / base))
        PeftTrainingModule(model).save_adapter(folder / f"{base}_adapter")
    return folder


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("source", "model_type"), [("nano", "tux_nano"), ("nano", "idefics3"), ("smol", "idefics3"), ("smol", "mine")]
)
def test_code_in_a_base(tiny: Path, tmp_path: Path, monkeypatch, source: str, model_type: str):
    """A base with code, of a known or unknown model type, neither prompts nor runs it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would take this as permission
    base, marker = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(tiny / source, base)
    (base / "modeling_x.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "XConfig", "AutoModelForImageTextToText": "XModel", "AutoModel": "XModel"}
    names |= {"AutoProcessor": "XModel", "AutoImageProcessor": "XModel", "AutoTokenizer": ["XModel", "XModel"]}
    auto = {key: f"modeling_x.{name}" if isinstance(name, str) else ["modeling_x.X"] * 2 for key, name in names.items()}
    change(base / "config.json", auto_map=auto, model_type=model_type)
    for name in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (base / name).exists():
            change(base / name, auto_map=auto)
    for read in (load_base, load_processor, BaseVLM):
        try:
            read(str(base))
        except InputError as error:
            assert str(base) in str(error) and "\n" not in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("base", ["nano", "smol"])
def test_code_in_an_adapter(tiny: Path, tmp_path: Path, monkeypatch, base: str):
    """Code beside an adapter, named wherever peft accepts a module name, does not run."""
    adapter, marker = tmp_path / "adapter", tmp_path / "ran"
    shutil.copytree(tiny / f"{base}_adapter", adapter)
    code = CODE.format(marker=str(marker))
    (adapter / "modeling_x.py").write_text(code)
    (adapter / "megatron_x.py").write_text(code)  # peft imports a name that begins like this
    monkeypatch.setattr(sys, "path", [str(adapter), *sys.path])
    auto = {"base_model_class": "XModel", "parent_library": "modeling_x"}
    change(adapter / "adapter_config.json", auto_mapping=auto, megatron_config={"x": 1}, megatron_core="megatron_x")
    change(adapter / "adapter_config.json", auto_map={"AutoModel": "modeling_x.XModel"})
    assert read_adapter_base(adapter) == str(tiny / base)
    try:
        BaseVLM(adapter)
    except InputError as error:
        assert str(adapter) in str(error)
    assert not marker.exists()


def test_a_hub_kernel_is_ignored(tiny: Path, tmp_path: Path):
    """Attention code of the hub, named by a config for the model or a part of it, is ignored."""
    base = tmp_path / "base"
    shutil.copytree(tiny / "smol", base)
    config = json.loads((base / "config.json").read_text())
    for part in (config, config["text_config"]):
        part["_attn_implementation"] = part["attn_implementation"] = "somebody/kernel"
    (base / "config.json").write_text(json.dumps(config))
    model = load_model(str(base))
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == "sdpa"
