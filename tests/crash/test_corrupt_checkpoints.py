"""Broken bases and adapters load, or are refused in one line; none exhausts memory."""

import json
import random
import shutil
from pathlib import Path

import pytest

from homework.base_vlm import BaseVLM
from homework.models.loading import load_adapter, load_base, load_model, load_processor
from homework.training.lora import PeftTrainingModule, add_lora
from homework.utils.errors import InputError
from tests.crash.mutate import broken_files, broken_json_files, failures, time_limit


@pytest.fixture(scope="module")
def small(nano_folder: Path, tmp_path_factory) -> Path:
    """Write an adapter and the tiny base with a byte-level tokenizer, which loads a hundred times as fast."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(nano_folder, folder / "base")
    file = folder / "base/tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["merges"] = []
    added = {token["content"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {t: i for t, i in vocabulary.items() if len(t) == 1 or t in added}
    file.write_text(json.dumps(tokenizer))
    model, _ = load_base(str(folder / "base"))
    PeftTrainingModule(add_lora(model, 2, str(folder / "base"))).save_adapter(folder / "adapter")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Look up no file in the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def read_adapter(folder: Path) -> None:
    load_adapter(load_model(str(folder / "base")), folder / "adapter")


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
    "adapter/adapter_config.json": (read_adapter, 40),
    "adapter/adapter_model.safetensors": (read_adapter, 25),
    "base/config.json": (read_model, 60),
    "base/model.safetensors": (read_model, 15),
    "base/generation_config.json": (read_model, 15),
    "base/tokenizer.json": (read_processor, 30),
    "base/tokenizer_config.json": (read_processor, 30),
    "base/processor_config.json": (read_processor, 40),
    "base/chat_template.jinja": (read_processor, 10),
}


def check(small: Path, capfd, name: str, count: int, seed: int) -> None:
    file = small / name
    content = file.read_bytes()
    for read in (FILES[name][0], load_for_answers):
        versions = (broken_json_files if name.endswith(".json") else broken_files)(content, count, seed)
        assert failures(file, versions, lambda read=read: read(small), small) == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", FILES)
def test_a_few_broken_files(small: Path, capfd, name: str):
    """4 versions of each file of a base and an adapter."""
    check(small, capfd, name, 4, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_broken_files(small: Path, capfd, name: str):
    """265 versions in all."""
    check(small, capfd, name, FILES[name][1], seed=4)


HUGE = {
    "text_config.hidden_size": 10**9,
    "text_config.intermediate_size": 10**8,
    "text_config.vocab_size": 10**9,
    "text_config.num_hidden_layers": 10**6,
    "vision_config.num_hidden_layers": 10**6,
    "vision_config.hidden_size": 10**8,
    "vision_config.channels": [10**6] * 4,
    "vision_config.blocks": [0, 1, 10**6, 1],
    "vision_config.num_summary_tokens": 10**8,
}


@pytest.mark.parametrize("place", HUGE)
def test_a_huge_size_in_a_config(small: Path, place: str):
    """A number in a config costs neither memory nor time."""
    file, (part, name) = small / "base/config.json", place.split(".")
    intact = file.read_text()
    config = json.loads(intact)
    config[part][name] = HUGE[place]
    file.write_text(json.dumps(config))
    try:
        for read in (load_model, BaseVLM):
            with time_limit(60), pytest.raises(InputError, match=r"its config claims|not a loadable base"):
                read(str(small / "base"))
    finally:
        file.write_text(intact)


@pytest.mark.parametrize("values", [{"r": 10**9}, {"r": 10**7}, {"rank_pattern": {"q_proj": 10**7}}])
def test_a_huge_rank_in_an_adapter(small: Path, tmp_path: Path, values: dict):
    """Nor does the rank of an adapter cost memory."""
    shutil.copytree(small / "adapter", tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | values
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="claims rank"):
        BaseVLM(tmp_path)


def test_versions_are_always_the_same():
    """Failures are reproducible."""
    first, second = (list(broken_files(random.Random(0).randbytes(100), 30, 5)) for _ in range(2))
    assert first == second
