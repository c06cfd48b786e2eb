"""Score bundles in the course's environment, which `make course-env` installs, as in this one."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bundle
from supertux.sample import use_sample
from tests.tiny_models import save_adapter, save_clip

ROOT = Path(__file__).parents[2]
COURSE_PYTHON = Path(os.environ.get("COURSE_VENV", ROOT / ".venv-course"), "bin", "python").absolute()
HUB_NAME = "HuggingFaceTB/SmolVLM-256M-Instruct"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COURSE_PYTHON.exists(), reason="no environment of the course; run `make course-env`"),
]


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """Unpack the sample data set."""
    data = tmp_path_factory.mktemp("sample") / "data"
    use_sample(data=data)
    return data


def unpack(package: Path, folder: Path, data: Path) -> Path:
    """Bundle a package and unpack it beside the data, as the course's grader does."""
    bundle.bundle(package, folder / "mine.zip")
    with zipfile.ZipFile(folder / "mine.zip") as archive:
        archive.extractall(folder / "unpacked")
    (folder / "unpacked" / "data").symlink_to(data)
    return folder / "unpacked"


def score(python: str | Path, submission: Path, **variables: str) -> dict:
    """Return what the course's calls report in an environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_", "OMP_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    command = [str(python), "-P", str(ROOT / "tests" / "course_grader.py"), str(submission)]
    run = subprocess.run(command, cwd=submission, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("REPORT")).split(" ", 1)[1])


def count_differences(one: dict, other: dict) -> int:
    """Return how many answers and choices differ between two reports."""
    pairs = zip(one["answers"] + one["choices"], other["answers"] + other["choices"], strict=True)
    return sum(a != b for a, b in pairs)


def test_shipped_models_score_there_as_here(sample, tmp_path):
    """At most one of 320 answers differs; macOS's hidden files in the folder of the base change nothing."""
    submission = unpack(ROOT / "homework", tmp_path, sample)
    (submission / "homework" / "weights" / "tux_nano" / ".DS_Store").write_bytes(b"\0")
    there, here = score(COURSE_PYTHON, submission), score(sys.executable, submission)
    assert len(here["answers"]) == 120 and len(here["choices"]) == 200
    assert count_differences(there, here) <= 1
    assert there["vlm_accuracy"] > 0.85 and there["clip_accuracy"] > 0.9 and there["events"] == []


def test_smolvlm_from_the_hubs_cache_scores_there_as_here(smol_folder, sample, tmp_path):
    """Adapters for the hub's SmolVLM load by its name from the cache; its weights here are random and few."""
    snapshot = tmp_path / "hub" / f"models--{HUB_NAME.replace('/', '--')}" / "snapshots" / ("0" * 40)
    shutil.copytree(smol_folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    package = tmp_path / "homework"
    shutil.copytree(ROOT / "homework", package, ignore=shutil.ignore_patterns("vlm", "clip", "__pycache__"))
    for save, name in ((save_adapter, "vlm"), (save_clip, "clip")):
        save(smol_folder, folder := package / "weights" / name)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": HUB_NAME}))
    submission = unpack(package, tmp_path, sample)
    there, here = (score(p, submission, HF_HUB_CACHE=str(tmp_path / "hub")) for p in (COURSE_PYTHON, sys.executable))
    assert count_differences(there, here) <= 1
    assert len(set(here["answers"])) > 1 and len(set(here["choices"])) > 1
