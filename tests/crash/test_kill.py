"""Commands that are killed at a few random moments finish with the undisturbed result; `kill` does more of them."""

import pytest

from . import kill
from .commands import COMMANDS, PYTHON, missing


@pytest.mark.parametrize("name", ["generate", "bundle"])
def test_killed_twice(name: str):
    assert kill.survive(name, count=2, seed=1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("by_change", [False, True], ids=["times", "changes"])
@pytest.mark.parametrize("name", COMMANDS)
def test_killed(name: str, by_change: bool):
    reason = missing(name)
    if reason:
        pytest.skip(reason)
    assert kill.survive(name, count=4, seed=2, by_change=by_change) == 0


class Careless(COMMANDS["bundle"]):
    """Writes its file in place and in two parts, as no command should."""

    name = "careless"

    def line(self, folder):
        text = "import sys\nwith open(sys.argv[1], 'w') as f: f.write('[1,')\nopen(sys.argv[1], 'a').write('2]')"
        return [PYTHON, "-c", text, str(folder / "file.json")]

    def result(self, folder):
        return (folder / "file.json").read_bytes()


def test_half_a_file_is_noticed(monkeypatch):
    """The check itself: a command that leaves half a file is told."""
    monkeypatch.setitem(COMMANDS, "careless", Careless)
    said = []
    assert kill.survive("careless", count=2, seed=0, by_change=True, say=said.append) == 1
    assert "2/2 at change 2: BROKEN: half written: file.json" in said[2]
