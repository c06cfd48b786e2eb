"""Every cell of docs/tour.ipynb runs in order, from docs/ as in Jupyter, and prints the stored output."""

import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from homework.labels.visualize import ROLE_COLORS

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tour.ipynb"
NOTEBOOK = json.loads(TOUR.read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def has_tag(cell: dict, *tags: str) -> bool:
    return not set(tags).isdisjoint(cell["metadata"].get("tags", []))


def run_cells(cells: list[dict]) -> dict:
    """Run cells and compare what they print with the stored output, if it does not depend on the weights."""
    scope = {"__name__": "__main__"}
    for number, cell in enumerate(cells, 1):
        stdout = io.StringIO()
        with contextlib.redirect_stdout(stdout):
            exec(compile("".join(cell["source"]), f"{TOUR.name}, cell {number}", "exec"), scope)
        stored = "".join(line for output in cell["outputs"] for line in output.get("text", []))
        assert stdout.getvalue() == stored or has_tag(cell, "model", "training"), number
        assert bool(stdout.getvalue()) == bool(stored), number
    return scope


def test_every_cell_before_the_training_runs(monkeypatch):
    """The boxes are drawn in the colours that the text says, in the stored picture too."""
    monkeypatch.chdir(TOUR.parent)
    monkeypatch.syspath_prepend(str(ROOT))
    assert NOTEBOOK["nbformat"] == 4 and len(CELLS) > 8
    scope = run_cells([cell for cell in CELLS if not has_tag(cell, "training")])
    (stored,) = (output["data"] for cell in CELLS for output in cell["outputs"] if "data" in output)
    pictures = [scope["picture"], Image.open(io.BytesIO(base64.b64decode(stored["image/jpeg"])))]
    text = "".join(line for cell in NOTEBOOK["cells"] for line in cell["source"])
    for role, words in (("ego", "ego kart is drawn red"), ("kart", "karts yellow"), ("small", "small light blue")):
        assert words in text.replace("\n", " ")
        box = next(box for box in reversed(scope["boxes"]) if box.role == role)
        corner = [round(scope["ZOOM"] * side) for side in box.corners[:2]]
        for picture in pictures:
            found = picture.convert("RGB").getpixel(tuple(corner))
            assert all(abs(a - b) < 60 for a, b in zip(found, ImageColor.getrgb(ROLE_COLORS[role]), strict=True)), role


@pytest.mark.slow
def test_every_cell_runs_and_training_helps(monkeypatch):
    """A few batches improve the base."""
    monkeypatch.chdir(TOUR.parent)
    monkeypatch.syspath_prepend(str(ROOT))
    scope = run_cells(CELLS)
    assert scope["after"].accuracy > scope["before"].accuracy


def test_first_cell_installs_a_clone_on_colab(monkeypatch, tmp_path):
    """Without a clone around it clones, and installs with the loose bounds of pyproject.toml; run again it does not."""
    commands = []

    def record(command: list[str], **_) -> None:
        commands.append(command)
        if command[0] == "git":
            Path(command[-1]).symlink_to(ROOT)

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec("".join(CELLS[0]["source"]), {"__name__": "__main__"})
    clone, install, unpack, unpack_again = commands
    assert clone[:2] == ["git", "clone"] and unpack == unpack_again and "use-sample" in unpack
    assert install[1:4] == ["-m", "pip", "install"] and install[-2:] == ["--editable", "tux-vlm"]
    assert Path.cwd() == (tmp_path / "tux-vlm").resolve() or Path.cwd().samefile(ROOT)


def test_badge_opens_this_notebook():
    badge = re.search(r"\]\(https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/main/(\S+?)\)", str(NOTEBOOK))
    assert (ROOT / badge[1]).samefile(TOUR)


def test_notebook_is_small():
    assert os.path.getsize(TOUR) < 200_000
