"""Broken bases and adapters load, or are refused in one line; none exhausts memory."""

import json
import random
import shutil
from pathlib import Path

import pytest

from homework.base_vlm import BaseVLM
from homework.models.loading import add_adapter, load_model, load_processor
from homework.utils.errors import InputError
from tests.crash.mutate import broken_files, broken_json_files, failures, time_limit
from tests.tiny_models import save_adapter


def write_small(base: Path, folder: Path) -> Path:
    """Copy a base with a byte-level tokenizer, which loads a hundred times as fast, and write an adapter for it."""
    shutil.copytree(base, folder / "base")
    file = folder / "base/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = []
    added = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {t: i for t, i in vocabulary.items() if len(t) == 1 or t in added}
    file.write_text(json.dumps(tokenizer))
    save_adapter(folder / "base", folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def folders(nano_folder: Path, smol_folder: Path, tmp_path_factory) -> dict[str, Path]:
    """Write base and adapter of both architectures."""
    bases = {"nano": nano_folder, "smolvlm": smol_folder}
    return {name: write_small(base, tmp_path_factory.mktemp(name)) for name, base in bases.items()}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Access no file of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def read_adapter(folder: Path) -> None:
    add_adapter(load_model(str(folder / "base")), folder / "adapter")


def read_model(folder: Path) -> None:
    load_model(str(folder / "base"))


def read_processor(folder: Path) -> None:
    load_processor(str(folder / "base"))


def load_for_answers(folder: Path) -> None:
    """Load base and adapter as for inference."""
    vlm = BaseVLM(folder / "adapter")
    vlm.tokens.decode([*vlm.tokens.question("What track is this?"), vlm.tokens.end])


# file -> (reader, number of versions in the slow test)
FILES = {
    "nano/adapter/adapter_config.json": (read_adapter, 40),
    "nano/adapter/adapter_model.safetensors": (read_adapter, 25),
    "nano/base/config.json": (read_model, 60),
    "nano/base/model.safetensors": (read_model, 15),
    "nano/base/tokenizer.json": (read_processor, 30),
    "smolvlm/adapter/adapter_config.json": (read_adapter, 40),
    "smolvlm/adapter/adapter_model.safetensors": (read_adapter, 25),
    "smolvlm/base/config.json": (read_model, 60),
    "smolvlm/base/model.safetensors": (read_model, 15),
    "smolvlm/base/generation_config.json": (read_model, 15),
    "smolvlm/base/tokenizer.json": (read_processor, 30),
    "smolvlm/base/tokenizer_config.json": (read_processor, 30),
    "smolvlm/base/processor_config.json": (read_processor, 40),
    "smolvlm/base/chat_template.jinja": (read_processor, 10),
}


def check(folders: dict[str, Path], capfd, name: str, count: int, seed: int) -> None:
    model, _, file = name.partition("/")
    folder = folders[model]
    content = (folder / file).read_bytes()
    for read in (FILES[name][0], load_for_answers):
        versions = (broken_json_files if name.endswith(".json") else broken_files)(content, count, seed)
        assert failures(folder / file, versions, lambda read=read: read(folder), folder) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_few_broken_files(folders, capfd, name: str):
    """4 versions of each file of both bases and their adapters."""
    check(folders, capfd, name, 4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_broken_files(folders, capfd, name: str):
    """435 versions in all."""
    check(folders, capfd, name, FILES[name][1], seed=4)


HUGE = {
    "nano.text.hidden_size": 10**9 - 1,
    "nano.text.intermediate_size": 10**8,
    "nano.text.vocab_size": 10**9 - 1,
    "nano.text.num_layers": 10**6,
    "nano.text.head_dim": 10**8,
    "nano.text.num_heads": 10**8,
    "nano.text.num_kv_heads": 10**8,
    "nano.vision.num_layers": 10**6,
    "nano.vision.hidden_size": 10**8,
    "nano.vision.num_heads": 10**8,
    "nano.vision.channels": [10**6] * 4,
    "nano.vision.blocks": [0, 1, 10**6, 1],
    "nano.vision.foveal_channels": [10**6] * 3,
    "nano.vision.foveal_blocks": [1, 10**6, 0],
    "nano.vision.num_register_tokens": 10**8,
    "nano.num_karts": 10**8,
    "nano.num_tracks": 10**8,
    "nano.num_counts": 10**8,
    "smolvlm.text_config.hidden_size": 10**9,
    "smolvlm.text_config.intermediate_size": 10**8,
    "smolvlm.text_config.vocab_size": 10**9,
    "smolvlm.text_config.num_hidden_layers": 10**6,
    "smolvlm.vision_config.num_hidden_layers": 10**6,
    "smolvlm.vision_config.hidden_size": 10**8,
    "smolvlm.vision_config.intermediate_size": 10**8,
}
PROBLEMS = {
    "nano": "not the weights that config.json describes",
    "smolvlm": "its config claims|cannot load it as a base",
}


@pytest.mark.parametrize("place", HUGE)
def test_a_huge_size_in_a_config(folders, place: str):
    """A number in a config costs neither memory nor time."""
    model, *parts, name = place.split(".")
    base = folders[model] / "base"
    intact = (base / "config.json").read_text()
    config = json.loads(intact)
    section = config[parts[0]] if parts else config
    assert name in section
    section[name] = HUGE[place]
    (base / "config.json").write_text(json.dumps(config))
    try:
        for read in (load_model, BaseVLM):
            with time_limit(60), pytest.raises(InputError, match=PROBLEMS[model]):
                read(str(base))
    finally:
        (base / "config.json").write_text(intact)


@pytest.mark.parametrize("model", ["nano", "smolvlm"])
@pytest.mark.parametrize("values", [{"r": 10**9}, {"r": 10**7}, {"rank_pattern": {"q_proj": 10**7}}])
def test_a_huge_rank_in_an_adapter(folders, tmp_path: Path, model: str, values: dict):
    """The rank that an adapter claims costs no memory either."""
    shutil.copytree(folders[model] / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | values
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="claims rank"):
        BaseVLM(tmp_path)


def test_versions_are_always_the_same():
    """Failures are reproducible."""
    first, second = (list(broken_files(random.Random(0).randbytes(100), 30, 5)) for _ in range(2))
    assert first == second
