"""Test a submission with a base of its own against every call of the course's grader."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from homework import clip, finetune
from homework.models import loading
from tests.tiny_models import save_tiny_nano

ROOT = Path(__file__).parents[2]


@pytest.fixture
def submission(tiny_data, no_progress, tmp_path, monkeypatch) -> Path:
    """Make a folder with `homework/` (code, a tiny base, trained adapters) and a link to the data beside it."""
    package = tmp_path / "unpacked" / "homework"
    shutil.copytree(ROOT / "homework", package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    base = package / "weights" / "tux_nano"
    save_tiny_nano(base)
    shutil.copy(Path(loading.DEFAULT_BASE) / "tokenizer_config.json", base)
    # as if trained by the submission itself, whose bundled base this is
    monkeypatch.setattr(loading, "DEFAULT_BASE", str(base))
    settings = {"base": str(base), "data": str(no_progress), "steps": 2, "batch_size": 3, "rank": 4}
    for part, name in ((finetune, "vlm"), (clip, "clip")):
        part.train(**settings, output=str(package / "weights" / name), run_dir=str(tmp_path / f"run_{name}"))
    (package.parent / "data").symlink_to(tiny_data)
    return package.parent


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Map every file and folder to its size and modification time."""
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))}


def test_course_grader_runs_through(submission, tiny_data, tmp_path):
    """Every call of the course's grader works offline, from another directory; nothing is written."""
    elsewhere, home = tmp_path / "elsewhere", tmp_path / "home"
    elsewhere.mkdir()
    home.mkdir()
    before = files(submission), files(tiny_data)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-P", str(ROOT / "tests" / "course_grader.py"), str(submission)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("REPORT")).split(" ", 1)[1])
    assert report["samples"] == 5 and report["questions"] == 6
    assert 0 <= report["vlm_accuracy"] <= 1 and 0 <= report["clip_accuracy"] <= 1
    assert 0 < report["clip_parameters"] <= 300_000_000 and 0 < report["vlm_parameters"] <= 300_000_000
    assert report["events"] == []
    assert (files(submission), files(tiny_data)) == before
    assert not list(elsewhere.iterdir())


def test_package_exports_the_names_of_the_contract():
    """`homework` has the names that a grader uses as attributes."""
    import homework

    for name in ("BaseVLM", "VQADataset", "benchmark", "train", "load_vlm", "load_clip", "data"):
        assert hasattr(homework, name), name
    assert callable(homework.load_vlm) and callable(homework.load_clip)
    with pytest.raises(AttributeError):
        homework.nothing  # noqa: B018
