"""Test models.hub: what is in the hub's cache is loaded without the network; what is missing is downloaded once."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from homework import clip
from homework.base_vlm import BaseVLM
from homework.models.hub import hub_folder
from homework.models.loading import DEFAULT_BASE, base_id, load_base, load_for_inference, resolve_base
from homework.utils.errors import InputError
from tests.tiny_models import save_adapter

ROOT = Path(__file__).parents[3]
NAME, SHA = "HuggingFaceTB/SmolVLM-256M-Instruct", "0" * 40


def snapshot(cache: Path) -> Path:
    """Return the folder of `NAME` in a hub's cache."""
    return cache / f"models--{NAME.replace('/', '--')}" / "snapshots" / SHA


def fill(cache: Path, base: Path) -> Path:
    """Write a base into a hub's cache as `NAME`; return its folder."""
    shutil.copytree(base, snapshot(cache))
    refs = snapshot(cache).parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(SHA)
    return snapshot(cache)


@pytest.fixture
def connections(monkeypatch) -> list:
    """Return the list of all attempts to use the network, which fail."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """Return an empty cache of the hub; the hub is not offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def test_a_cached_base_needs_no_network(smol_folder, cache, connections, tmp_path, views, monkeypatch):
    """Base and adapter load from a full cache, from any folder; a folder of the owner's name does not hide it."""
    fill(cache, smol_folder)
    (tmp_path / "cwd" / NAME).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    save_adapter(NAME, tmp_path / "adapter")
    answers = BaseVLM(tmp_path / "adapter").answer(views[:1], ["What track is this?"])
    assert answers == BaseVLM(smol_folder).answer(views[:1], ["What track is this?"])
    assert connections == []


@pytest.mark.parametrize(
    "variable", [{"HF_HUB_CACHE": "hub"}, {"HF_HOME": "."}, {"XDG_CACHE_HOME": "xdg"}, {"HUGGINGFACE_HUB_CACHE": "hub"}]
)
def test_the_cache_is_the_one_of_the_hubs_library(smol_folder, tmp_path, variable):
    ((name, place),) = variable.items()
    folder = fill(tmp_path / place / "huggingface" / "hub" if name.startswith("XDG") else tmp_path / "hub", smol_folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "XDG_"))}
    script = f"from homework.models.hub import hub_folder; print(hub_folder({NAME!r}))"
    environment |= {name: str(tmp_path / place), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(folder), done.stderr


@pytest.mark.parametrize("missing", [None, "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("offline", [True, False])
def test_a_base_that_is_not_cached(smol_folder, cache, connections, monkeypatch, missing, offline):
    """One line names the command that caches it; the network is tried once, not for each file."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    if missing:
        (fill(cache, smol_folder) / missing).unlink()
    with pytest.raises(InputError, match=f"cache it first: hf download {NAME}") as info:
        load_base(NAME)
    assert str(info.value).startswith(f"{NAME}: no such base") and "\n" not in str(info.value)
    assert len(connections) <= (0 if offline else 4)  # a name is resolved again for each address and each retry


def test_what_is_missing_is_downloaded_once(smol_folder, cache, monkeypatch):
    import huggingface_hub

    real, downloads = huggingface_hub.snapshot_download, []

    def download(name: str, local_files_only: bool = False, **settings) -> str:
        if not local_files_only:
            downloads.append(name)
            fill(cache, smol_folder)
        return real(name, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub_folder(NAME) == hub_folder(NAME) == snapshot(cache)
    load_base(NAME)
    assert downloads == [NAME]


def test_names_of_bases(smol_folder, cache, tmp_path, monkeypatch):
    """A relative folder is stored as an absolute one, so that it is found from anywhere; a hub name stays."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tux_nano").mkdir()
    assert resolve_base("tux_nano") == DEFAULT_BASE and base_id("tux_nano") == "tux_nano"
    (tmp_path / NAME).mkdir(parents=True)
    assert resolve_base(NAME) == base_id(NAME) == NAME
    assert resolve_base(f"./{NAME}") == str(tmp_path / NAME)
    shutil.copy(smol_folder / "config.json", tmp_path / NAME)
    assert base_id(NAME) == str(tmp_path / NAME)
    shutil.copytree(smol_folder, tmp_path / "mine" / "vlm")
    save_adapter("mine/vlm", tmp_path / "adapter")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_base("~/mine/vlm") == str(tmp_path / "mine" / "vlm")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load_for_inference(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    for load in (load_for_inference, clip.load):
        with pytest.raises(InputError, match="mine/vlmm: no such .*did you mean vlm"):
            load("mine/vlmm")
