"""The commands of docs/SCALING.md run on two processes of this machine. Slow: each starts two trainings."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from homework.utils.io import read_json
from supertux.render.planner import TRACKS
from supertux.render.renderer import render
from tests.conftest import TRACKS as COLOURED_TRACKS
from tests.conftest import write_frame
from tests.supertux.installed import skip_unless_installed

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/SCALING.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:torchrun --nproc|accelerate launch ).*)$", PAGE, re.MULTILINE)


def test_the_page_has_both_launchers_and_both_trainings():
    assert len(COMMANDS) == 3 and COMMANDS[2].startswith("accelerate") and "homework.clip" in COMMANDS[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_train(command: str, nano_folder, no_progress, tmp_path):
    """The command as it stands, with a tiny base, few steps and small batches."""
    for number in range(4):
        write_frame(no_progress / "train", f"000c{number}", list(COLOURED_TRACKS)[number], shift=number)
    settings = f"--base {nano_folder} --data {no_progress} --steps 2 --rank 2 --output {tmp_path / 'adapter'}"
    program, *arguments = shlex.split(re.sub(r"--batch-size \d+", "--batch-size 4", command))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment |= {"HF_HOME": str(tmp_path / "home")}
    words = [Path(sys.executable).with_name(program), *arguments, *shlex.split(settings)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = read_json(tmp_path / "adapter/training.json")
    assert manifest["config"]["steps"] == 2 and manifest["config"]["batch_size"] == 4


@pytest.mark.slow
def test_ray_draws_the_same_labels(tmp_path):
    """Labels of frames drawn as tasks of Ray equal those drawn without it; a few pictures differ from run to run."""
    pytest.importorskip("ray", reason="pip install 'ray==2.60.0'")
    skip_unless_installed("hd")
    for ray in ("", "local"):
        render(output=tmp_path / f"ray {ray}", frames=4, seed=1, ray=ray, tracks=",".join(TRACKS[:2]))
    one, other = (
        {file.name: file.suffix == ".jpg" or file.read_bytes() for file in (tmp_path / f"ray {ray}").glob("*_*")}
        for ray in ("", "local")
    )
    assert one == other and len(one) > 4
