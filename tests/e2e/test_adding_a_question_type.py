"""docs/ADDING_A_QUESTION_TYPE.md as it stands: its changes on a copy, its commands, and the answers checked by hand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ADDING_A_QUESTION_TYPE.md").read_text()
QUESTION = "Which kart is nearest to the ego car?"
SIX_KINDS = """
from homework.labels.eval_sets import balanced_pairs, split_scenes
from homework.labels.questions import QUESTION_TYPES, classify_question
from viewer.report.plots import COLOURS
rows = balanced_pairs(split_scenes("data", "valid"), 6, 0)
assert sorted(classify_question(row["question"]) for row in rows) == sorted(QUESTION_TYPES) and len(QUESTION_TYPES) == 6
assert set(QUESTION_TYPES) <= set(COLOURS)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def apply(block: str, root: Path) -> None:
    """The block's changes; what stands around them must be there, once."""
    name, _, hunks = block.removeprefix("--- ").partition("\n")
    text = (root / name).read_text()
    for hunk in hunks.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] == " ")
        assert text.count("\n" + old) == 1, f"{name} has no\n{old}"
        text = text.replace("\n" + old, "\n" + "".join(line[1:] for line in lines))
    (root / name).write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, sample_data) -> Path:
    """A copy of what the page touches, changed as it says, with a few frames of the sample."""
    root = tmp_path_factory.mktemp("six")
    for package in ("homework", "viewer"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (root / "data" / "valid").mkdir(parents=True)
    for frame in range(6):
        for file in (sample_data / "valid").glob(f"0000{frame}_*"):
            if not file.name.endswith(".json") or file.name.endswith("_info.json"):
                shutil.copy(file, root / "data" / "valid")
    for block in blocks("diff"):
        apply(block, root)
    return root


def test_the_page_works_as_it_stands(changed):
    """Its commands end well, and what they write has the sixth kind, right in the views that are checked by hand."""
    (commands,), (shown,) = blocks("sh"), blocks("text")
    for command in commands.splitlines():
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=changed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (changed / "nearest.png").exists()
    rows = json.loads((changed / "data" / "valid" / "generated_qa_pairs.json").read_text())
    nearest = {row["image_file"]: row["answer"] for row in rows if row["question"] == QUESTION}
    assert shown.strip() == f"{QUESTION} {nearest['valid/00000_07_im.jpg']}"
    assert nearest["valid/00003_03_im.jpg"] == "emule"  # 19.0 from pidgin, the ego kart; sara is 51.1 away
    assert "valid/00000_01_im.jpg" not in nearest  # one kart
    asked = {row["image_file"] for row in rows if row["question"].startswith("Where is ")}
    assert set(nearest) == asked


def test_sets_and_colours_have_six_kinds(changed):
    done = subprocess.run([sys.executable, "-c", SIX_KINDS], cwd=changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
