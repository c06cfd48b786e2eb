"""No code of a checkpoint runs: checks of the source, and a base and an adapter that bring code."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from homework.base_vlm import BaseVLM
from homework.models.idefics3 import load_adapter
from homework.models.loading import add_adapter, load_base, load_model, load_processor
from homework.models.lora_weights import read_adapter_base
from homework.utils.errors import InputError
from tests.tiny_models import save_adapter

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
    # the pattern finds the existing calls
    assert sum(bool(TORCH_LOAD.search(file.read_text())) for file in sources()) >= 2


@pytest.fixture(scope="module")
def tiny(base_folder: Path, tmp_path_factory) -> Path:
    """Copy a tiny base, and write an adapter for the copy."""
    folder = tmp_path_factory.mktemp("tiny")
    shutil.copytree(base_folder, folder / "base")
    save_adapter(folder / "base", folder / "adapter")
    return folder


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("model_type", ["tux_nano", "idefics3", "mine"])
def test_code_in_a_base(tiny: Path, tmp_path: Path, monkeypatch, model_type: str):
    """A base with code, of a known or unknown model type, neither prompts nor runs it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would take this as permission
    base, marker = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(tiny / "base", base)
    (base / "modeling_x.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoConfig": "XConfig", "AutoModelForImageTextToText": "XModel", "AutoModel": "XModel"}
    names |= {"AutoProcessor": "XModel", "AutoImageProcessor": "XModel", "AutoTokenizer": ["XModel", "XModel"]}
    auto = {key: f"modeling_x.{name}" if isinstance(name, str) else ["modeling_x.X"] * 2 for key, name in names.items()}
    change(base / "config.json", auto_map=auto, model_type=model_type)
    for name in ("processor_config.json", "tokenizer_config.json"):
        if (base / name).exists():
            change(base / name, auto_map=auto)
    for read in (load_base, load_processor, BaseVLM):
        try:
            read(str(base))
        except InputError as error:
            assert str(base) in str(error) and "\n" not in str(error)
    assert not marker.exists()


@pytest.mark.parametrize("load", [add_adapter, load_adapter])
def test_code_in_an_adapter(tiny: Path, tmp_path: Path, monkeypatch, load):
    """Code beside an adapter, named wherever peft accepts a module name, does not run."""
    adapter, marker = tmp_path / "adapter", tmp_path / "ran"
    shutil.copytree(tiny / "adapter", adapter)
    code = CODE.format(marker=str(marker))
    (adapter / "modeling_x.py").write_text(code)
    (adapter / "megatron_x.py").write_text(code)  # peft imports a name that begins like this
    monkeypatch.setattr(sys, "path", [str(adapter), *sys.path])
    auto = {"base_model_class": "XModel", "parent_library": "modeling_x"}
    change(adapter / "adapter_config.json", auto_mapping=auto, megatron_config={"x": 1}, megatron_core="megatron_x")
    change(adapter / "adapter_config.json", auto_map={"AutoModel": "modeling_x.XModel"})
    assert read_adapter_base(adapter) == str(tiny / "base")
    for read in (lambda: load(load_model(str(tiny / "base")), adapter), lambda: BaseVLM(adapter)):
        try:
            read()
        except InputError as error:
            assert str(adapter) in str(error)
    assert not marker.exists()


def test_a_hub_kernel_is_ignored(smol_folder: Path, tmp_path: Path):
    """Attention code of the hub, named by a config for the model or a part of it, is ignored."""
    base = tmp_path / "base"
    shutil.copytree(smol_folder, base)
    config = json.loads((base / "config.json").read_text())
    for part in (config, config["text_config"]):
        part["_attn_implementation"] = part["attn_implementation"] = "somebody/kernel"
    (base / "config.json").write_text(json.dumps(config))
    model, _ = load_base(str(base))
    assert model.config._attn_implementation == model.config.text_config._attn_implementation == "sdpa"
