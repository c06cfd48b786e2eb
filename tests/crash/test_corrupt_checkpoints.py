"""Broken bases and adapters load, or are refused in one line; none exhausts memory."""

import json
import random
import shutil
from pathlib import Path

import pytest

from homework.base_vlm import BaseVLM
from homework.models.loading import load_model, load_processor
from homework.models.prompts import PromptTokens
from homework.training.lora import PeftTrainingModule, add_lora
from homework.utils.errors import InputError
from tests.crash.mutate import broken_files, broken_json_files, failures, time_limit


@pytest.fixture(scope="module")
def small(nano_folder: Path, smol_folder: Path, tmp_path_factory) -> Path:
    """Write both tiny bases with byte-level tokenizers, which load a hundred times as fast, and an adapter of each."""
    folder = tmp_path_factory.mktemp("small")
    for base, source in (("nano", nano_folder), ("smol", smol_folder)):
        shutil.copytree(source, folder / base)
        file = folder / base / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["model"]["merges"] = []
        added = {token["content"] for token in tokenizer["added_tokens"]}
        vocabulary = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = {t: i for t, i in vocabulary.items() if len(t) == 1 or t in added}
        file.write_text(json.dumps(tokenizer))
        model = load_model(str(folder / base))
        PeftTrainingModule(add_lora(model, 2, str(folder / base))).save_adapter(folder / f"{base}_adapter")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Access no file of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# file -> number of versions in the slow test
FILES = {
    "nano_adapter/adapter_config.json": 40,
    "nano_adapter/adapter_model.safetensors": 25,
    "nano/config.json": 60,
    "nano/model.safetensors": 15,
    "nano/tokenizer.json": 30,
    "smol_adapter/adapter_config.json": 40,
    "smol_adapter/adapter_model.safetensors": 25,
    "smol/config.json": 60,
    "smol/model.safetensors": 15,
    "smol/generation_config.json": 15,
    "smol/tokenizer.json": 30,
    "smol/tokenizer_config.json": 30,
    "smol/processor_config.json": 40,
    "smol/preprocessor_config.json": 40,
    "smol/chat_template.json": 10,
}


def check(small: Path, capfd, name: str, count: int, seed: int) -> None:
    def load() -> None:
        vlm = BaseVLM(small / f"{name[:4]}_adapter")
        vlm.tokens.decode([*vlm.tokens.question("What track is this?"), vlm.tokens.end])

    file = small / name
    versions = (broken_json_files if name.endswith(".json") else broken_files)(file.read_bytes(), count, seed)
    assert failures(file, versions, load, small) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_few_broken_files(small: Path, capfd, name: str):
    """4 versions of each file of a base and an adapter."""
    check(small, capfd, name, 4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_broken_files(small: Path, capfd, name: str):
    """435 versions in all."""
    check(small, capfd, name, FILES[name], seed=4)


HUGE = {
    "nano text.hidden_size": 10**8,
    "nano text.intermediate_size": 10**8,
    "nano text.vocab_size": 10**8,
    "nano text.num_layers": 10**6,
    "nano text.head_dim": 10**8,
    "nano text.num_heads": 10**8,
    "nano text.num_kv_heads": 10**8,
    "nano vision.num_layers": 10**6,
    "nano vision.num_heads": 10**8,
    "nano vision.foveal_channels": [10**6] * 3,
    "nano vision.foveal_blocks": [1, 10**6, 0],
    "nano vision.hidden_size": 10**8,
    "nano vision.channels": [10**6] * 4,
    "nano vision.blocks": [0, 1, 10**6, 1],
    "nano vision.num_register_tokens": 10**8,
    "smol text_config.hidden_size": 10**9,
    "smol text_config.intermediate_size": 10**8,
    "smol text_config.vocab_size": 10**9,
    "smol text_config.num_hidden_layers": 10**6,
    "smol vision_config.num_hidden_layers": 10**6,
    "smol vision_config.hidden_size": 10**8,
}


@pytest.mark.parametrize("place", HUGE)
def test_a_huge_size_in_a_config(small: Path, place: str):
    """A number in a config costs neither memory nor time."""
    base, _, path = place.partition(" ")
    file, (part, name) = small / base / "config.json", path.split(".")
    intact = file.read_text()
    config = json.loads(intact)
    config[part][name] = HUGE[place]
    file.write_text(json.dumps(config))
    try:
        for read in (load_model, BaseVLM):
            with time_limit(60), pytest.raises(InputError, match=r"not the weights|cannot load it as a base"):
                read(str(small / base))
    finally:
        file.write_text(intact)


@pytest.mark.parametrize("base", ["nano", "smol"])
@pytest.mark.parametrize("values", [{"r": 10**9}, {"r": 10**7}, {"rank_pattern": {"q_proj": 10**7}}])
def test_a_huge_rank_in_an_adapter(small: Path, tmp_path: Path, base: str, values: dict):
    """The rank of an adapter costs no memory either."""
    shutil.copytree(small / f"{base}_adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | values
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="claims rank"):
        BaseVLM(tmp_path)


def test_versions_are_always_the_same():
    """Failures are reproducible."""
    first, second = (list(broken_files(random.Random(0).randbytes(100), 30, 5)) for _ in range(2))
    assert first == second


def test_a_short_maximum_length_gives_no_warning(smol_folder: Path, tmp_path: Path, capfd):
    """transformers would warn of the first text that exceeds the tokenizer's `model_max_length`."""
    shutil.copytree(smol_folder, tmp_path / "base")
    file = tmp_path / "base/tokenizer_config.json"
    prefix = PromptTokens(load_processor(str(smol_folder))).prefix
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": len(prefix)}))
    processor = load_processor(str(tmp_path / "base"))
    PromptTokens(processor).question("How many karts are there in the scenario? " * 3)
    assert capfd.readouterr().err == ""
