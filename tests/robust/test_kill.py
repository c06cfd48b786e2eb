"""Commands that are killed at a few random moments finish with the undisturbed result; `kill` does more of them."""

import pytest

from . import kill
from .commands import COMMANDS, missing


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


class Careless(COMMANDS["generate"]):
    """Writes its file in place, slowly, as no command should."""

    name = "careless"

    def line(self, folder):
        text = "import sys,time\nf=open(sys.argv[1],'w')\nfor c in '[1,2]': f.write(c);f.flush();time.sleep(.2)\n"
        return [kill.sys.executable, "-c", text, str(folder / "train/generated_qa_pairs.json")]


def test_half_a_file_is_noticed(monkeypatch):
    """The check itself: a command that leaves half a file is told."""
    monkeypatch.setitem(COMMANDS, "careless", Careless)
    said = []
    assert kill.survive("careless", count=3, seed=0, say=said.append) > 0
    assert any("BROKEN: half written: train/generated_qa_pairs.json" in line for line in said)
