"""Find the environment of `make export-env`, in which the slow tests run commands and scripts."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def in_export_env(tmp_path_factory) -> Callable:
    """Return `run(*arguments, script="")`: runs Python in that environment and returns stdout's last line as JSON.

    Args:
        script: source code to run instead of a module.
    """
    python = Path(os.environ.get("EXPORT_PYTHON", ROOT / ".venv-export/bin/python"))
    if not python.exists():
        pytest.skip(f"no {python}. Run `make export-env`, or set EXPORT_PYTHON to that environment's Python")
    folder = tmp_path_factory.mktemp("export_env")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}

    def run(*arguments, script: str = "", **variables: str):
        command = [python, *(["-c", script] if script else []), *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        lines = done.stdout.strip().splitlines()
        return json.loads(lines[-1]) if script and lines else done.stdout

    return run
