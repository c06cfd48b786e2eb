"""Commands killed at a few random moments finish with the undisturbed result; `kill.py` tries more moments."""

import pytest

from . import kill
from .commands import COMMANDS, PYTHON, why_missing


@pytest.mark.parametrize("name", ["generate", "bundle"])
def test_killed_twice(name: str):
    assert kill.count_broken(name, count=2, seed=1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("by_change", [False, True], ids=["times", "changes"])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed(name: str, by_change: bool):
    reason = why_missing(name)
    if reason:
        pytest.skip(reason)
    assert kill.count_broken(name, count=4, seed=2, by_change=by_change) == 0


class Careless(COMMANDS["bundle"]):
    """Write a file in place and in two parts, as no command should."""

    name = "careless"

    def line(self, folder):
        text = "import sys\nwith open(sys.argv[1], 'w') as f: f.write('[1,')\nopen(sys.argv[1], 'a').write('2]')"
        return [PYTHON, "-c", text, str(folder / "file.json")]

    def result(self, folder):
        return (folder / "file.json").read_bytes()


def test_an_incomplete_file_is_reported(monkeypatch):
    """Check the check: a command that leaves an incomplete file is reported."""
    monkeypatch.setitem(COMMANDS, "careless", Careless)
    lines = []
    assert kill.count_broken("careless", count=2, seed=0, by_change=True, report=lines.append) == 1
    assert "2/2 at change 2: BROKEN: incomplete: file.json" in lines[2]
