"""bundle.py: what is packed, what is refused, and that it needs only the standard library."""

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import bundle

ROOT = Path(__file__).parents[2]
KEPT = ("__init__.py", "data.py", "vlm/adapter_config.json", "vlm/adapter_model.safetensors", "vlm/README.md")
DROPPED = (
    *("vlm/optimizer.pt", "vlm/scheduler.pt", "vlm/rng_state.pth", "vlm/rng_state_0.pth", "vlm/trainer_state.json"),
    *("vlm/training_args.bin", "vlm/checkpoint-20/adapter_model.safetensors", "vlm/events.out.tfevents.17.host.0"),
    *("runs/a/events.out.tfevents.1", "__pycache__/data.cpython-311.pyc", "old.pyc", ".hidden", ".cache/a"),
    *("train.log", "logs/a.txt", "cache/a.npy", "views-0011223344556677.npy"),
)


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "homework"
    for name in KEPT + DROPPED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name * 100)
    return folder


def run(*arguments, cwd):
    # -I: no environment, no user packages; nothing of the virtual environment may be needed
    command = [sys.executable, "-I", "-S", str(ROOT / "bundle.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_packs_what_a_grader_needs_with_the_standard_library_alone(package, tmp_path):
    done = run("homework", "abc123", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "abc123.zip") as archive:
        assert archive.namelist() == sorted(f"homework/{name}" for name in KEPT)
        assert archive.testzip() is None
        assert archive.read("homework/data.py") == b"data.py" * 100
    lines = done.stdout.splitlines()
    assert lines[0].startswith("abc123.zip: 0.0 MB, 5 files")
    assert [line.split()[-1] for line in lines[1:]] == [
        *("vlm/adapter_model.safetensors", "vlm/adapter_config.json", "vlm/README.md")
    ]


def test_same_files_give_the_same_bytes(package, tmp_path):
    bundle.bundle(package, tmp_path / "a.zip")
    for file in package.rglob("*"):
        os.utime(file, (time.time(), 1e9))
        if file.is_file():
            file.chmod(0o600)
    bundle.bundle(package, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_does_not_pack_itself(package):
    bundle.bundle(package, package / "a.zip")
    first = (package / "a.zip").read_bytes()
    assert Path("a.zip") not in bundle.bundle(package, package / "a.zip")
    assert (package / "a.zip").read_bytes() == first


def test_refuses_too_large_lists_the_largest_and_keeps_the_old_bundle(package, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "abc.zip").write_text("old")
    (package / "vlm/model.safetensors").write_bytes(os.urandom(30_000_000))
    (package / "clip.safetensors").write_bytes(os.urandom(25_000_000))
    done = run("homework", "abc", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "exceeds 50 MB" in done.stderr
    assert done.stderr.index("vlm/model.safetensors (30.0 MB)") < done.stderr.index("clip.safetensors (25.0 MB)")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["old"]


def test_a_large_file_that_compresses_is_packed(package, tmp_path):
    (package / "zeros.bin").write_bytes(bytes(60_000_000))
    bundle.bundle(package, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").stat().st_size < 1_000_000


def test_refusals_are_one_line(package, tmp_path):
    (package / "vlm" / "base").symlink_to(tmp_path)
    (tmp_path / "empty").mkdir()
    for name, word in (("homework", "link"), ("empty", "__init__.py"), ("nowhere", "no such folder")):
        done = run(name, "abc", cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and word in done.stderr
        assert not (tmp_path / "abc.zip").exists()


@pytest.mark.parametrize("arguments", [(), ("homework",), ("homework", "../abc"), ("homework", "a", "--nope")])
def test_usage_errors(arguments, tmp_path):
    assert run(*arguments, cwd=tmp_path).returncode == 2
