"""bundle.py: which files and which runs are packed, what is refused, and that it needs only the standard library."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import bundle

ROOT = Path(__file__).parents[2]
KEPT = ("__init__.py", "data.py", "vlm/adapter_config.json", "vlm/adapter_model.safetensors", "vlm/README.md")
KEPT += ("vlm/checkpoint-20/adapter_model.safetensors",)  # a load_vlm may prefer it
DROPPED = (
    *("vlm/optimizer.pt", "vlm/scheduler.pt", "vlm/rng_state.pth", "vlm/rng_state_0.pth", "vlm/trainer_state.json"),
    *("vlm/training_args.bin", "vlm/events.out.tfevents.17.host.0"),
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
    assert lines[0].startswith("abc123.zip: 0.0 MB, 6 files")
    assert [line.split()[-1] for line in lines[1:4]] == [
        *("vlm/checkpoint-20/adapter_model.safetensors", "vlm/adapter_model.safetensors", "vlm/adapter_config.json")
    ]
    left_out = lines[4].removeprefix("left out: ").split(", ")
    assert all(any(name.startswith(shown.rstrip("/")) for shown in left_out) for name in DROPPED)


@pytest.fixture
def submission(tmp_path) -> Path:
    """A folder with a package as ours: shipped weights, and a run of each part, that of the VLM finished."""
    for place, date in (("homework/weights/vlm", "2026-01-01 00:00"), ("homework/weights/clip", "2026-01-02 00:00")):
        write_run(tmp_path / place, date, "shipped")
    write_run(tmp_path / "runs/vlm", "2026-02-03 04:05", "mine")
    write_run(tmp_path / "runs/clip", None, "unfinished")
    (tmp_path / "homework/__init__.py").touch()
    return tmp_path


def write_run(folder: Path, date: str | None, weights: str, base: str = "tux_nano", part: str | None = None) -> None:
    folder.mkdir(parents=True)
    if (part or folder.name) == "clip":
        (folder / "additional_weights.pt").touch()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").write_text(weights)
    if date:  # the manifest is written last
        (folder / "training.json").write_text(json.dumps({"date": date, "config": {"split": "train"}}))


def packed_weights(bundle_file: Path) -> dict[str, str]:
    with zipfile.ZipFile(bundle_file) as archive:
        return {
            part: archive.read(f"homework/weights/{part}/adapter_model.safetensors").decode() for part in bundle.PARTS
        }


def test_finished_runs_are_packed_and_named_with_their_date(submission):
    """The shipped weights take the place of a run that is not finished."""
    done = run("homework", "abc", cwd=submission)
    assert done.returncode == 0, done.stderr
    assert packed_weights(submission / "abc.zip") == {"vlm": "mine", "clip": "shipped"}
    vlm, clip, origin = done.stdout.splitlines()[:3]
    assert vlm == "VLM  runs/vlm: trained 2026-02-03 04:05 on train, base tux_nano"
    assert clip == "CLIP shipped, since runs/clip is not finished"
    assert origin == "     homework/weights/clip: trained 2026-01-02 00:00 on train, base tux_nano"


@pytest.mark.parametrize(("part", "module"), [("vlm", "finetune"), ("clip", "clip")])
def test_an_interrupted_training_is_not_passed_over(submission, part, module):
    """The step it has reached and the command that resumes it are named, whatever is packed in its place."""
    resume = f"runs/{part}-run is unfinished (step 94): `python -m homework.{module} train` resumes it"
    for name in ("vlm", "clip"):
        shutil.rmtree(submission / f"runs/{name}")
    for step in (9, 94):
        write_checkpoint(submission / f"runs/{part}-run", step)
    lines = run("homework", "abc", cwd=submission).stdout.splitlines()
    assert f"{part.upper():5}shipped, since {resume}" in lines
    write_run(submission / f"runs/{part}", "2026-05-05 05:05", "before")  # a new run in the place of a finished one
    lines = run("homework", "abc", cwd=submission).stdout.splitlines()
    at = lines.index(f"warning: {resume}")
    assert lines[at - 1].startswith(f"{part.upper():5}runs/{part}: trained 2026-05-05")
    assert packed_weights(submission / "abc.zip")[part] == "before"
    write_checkpoint(submission / "runs/mine-run", 7)
    for name in ("runs/mine", "runs/mine-run"):
        done = run("homework", "abc", f"--{part}", name, cwd=submission)
        command = f"`python -m homework.{module} train --output runs/mine`"
        assert done.stderr == f"error: runs/mine-run is unfinished (step 7): {command} resumes it\n"
    done = run("homework", "abc", f"--{part}", "shipped", cwd=submission)
    assert f"{part.upper():5}shipped (homework/weights/{part}): trained" in done.stdout and resume not in done.stdout


def write_checkpoint(run_dir: Path, step: int) -> None:
    (run_dir / f"checkpoint-{step}").mkdir(parents=True)
    (run_dir / f"checkpoint-{step}/trainer_state.json").write_text("{}")


def test_the_run_of_the_other_part_is_refused(submission):
    """A CLIP has additional_weights.pt, a VLM has not; nothing is packed."""
    write_run(submission / "runs/other", "2026-03-03 00:00", "other", part="clip")
    done = run("homework", "abc", "--vlm", "runs/other", cwd=submission)
    remedy = "choose another --vlm, or pack it with --clip runs/other"
    assert done.returncode == 1
    assert done.stderr == f"error: runs/other: a CLIP's checkpoint, expected one of a VLM; {remedy}\n"
    done = run("homework", "abc", "--clip", "runs/vlm", cwd=submission)
    problem = "a VLM's checkpoint (no additional_weights.pt), expected one of a CLIP"
    assert done.returncode == 1 and done.stderr.startswith(f"error: runs/vlm: {problem}; choose another --clip")
    assert not (submission / "abc.zip").exists()


def test_runs_can_be_chosen(submission):
    write_run(submission / "other", "2026-03-03 00:00", "other", base="/home/me/base", part="clip")
    done = run("homework", "abc", "--vlm", "shipped", "--clip", "other", cwd=submission)
    assert done.returncode == 0, done.stderr
    assert packed_weights(submission / "abc.zip") == {"vlm": "shipped", "clip": "other"}
    assert "warning: no grader can reach that base" in done.stdout
    for choice, problem in (("runs/clip", "not a finished run"), ("nowhere", "not a finished run")):
        done = run("homework", "abc", "--clip", choice, cwd=submission)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and f"{choice}: {problem}" in done.stderr
    (submission / "runs/vlm/training.json").write_text("{")
    assert "training.json: not readable as JSON" in run("homework", "abc", cwd=submission).stderr
    assert packed_weights(submission / "abc.zip") == {"vlm": "shipped", "clip": "other"}


def test_a_reader_that_ends_early_is_no_error(submission):
    command = f"{sys.executable} -I -S {ROOT / 'bundle.py'} homework abc | head -1"
    done = subprocess.run(command, shell=True, cwd=submission, capture_output=True, text=True)
    assert done.stdout.startswith("VLM  runs/vlm") and done.stderr == ""
    assert packed_weights(submission / "abc.zip")["vlm"] == "mine"


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
    assert "a.zip" not in bundle.bundle(package, package / "a.zip")[0]
    assert (package / "a.zip").read_bytes() == first


def test_refuses_too_large_lists_the_largest_and_keeps_the_old_bundle(package, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "abc.zip").write_text("old")
    (package / "vlm/model.safetensors").write_bytes(os.urandom(30_000_000))
    (package / "clip.safetensors").write_bytes(os.urandom(25_000_000))
    done = run("homework", "abc", "--output", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "exceeds 50 MB" in done.stderr
    assert "most is in vlm (30.0 MB)" in done.stderr  # folders, then files
    assert done.stderr.index("vlm/model.safetensors (30.0 MB)") < done.stderr.index("clip.safetensors (25.0 MB)")
    assert [file.read_text() for file in (tmp_path / "out").iterdir()] == ["old"]


def test_too_large_adapters_are_named_with_rank_and_precision(package, tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    weights = len(header).to_bytes(8, "little") + header + os.urandom(51_000_000)
    (package / "vlm/adapter_model.safetensors").write_bytes(weights)
    (package / "vlm/adapter_config.json").write_text('{"r": 64}')
    (package / "clip_adapter").mkdir()
    (package / "clip_adapter/adapter_model.safetensors").write_bytes(b"broken")
    done = run("homework", "abc", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "vlm/adapter_model.safetensors has rank 64 in F32" in done.stderr and "lower --rank" in done.stderr


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
