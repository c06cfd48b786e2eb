"""Apply the steps of docs/ADDING_A_QUESTION_TYPE.md to a copy, run its commands, check answers found by hand."""

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
SIX_TYPES = """
from homework.labels.eval_sets import balanced_pairs, split_scenes
from homework.labels.questions import QUESTION_TYPES, classify_question
rows = balanced_pairs(split_scenes("data", "valid"), 6, 0)
assert sorted(classify_question(row["question"]) for row in rows) == sorted(QUESTION_TYPES) and len(QUESTION_TYPES) == 6
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def apply(block: str, root: Path) -> None:
    """Apply a diff block; its context lines must occur exactly once."""
    name, _, hunks = block.removeprefix("--- ").partition("\n")
    text = (root / name).read_text()
    for hunk in hunks.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] == " ")
        assert text.count("\n" + old) == 1, f"expected once in {name}:\n{old}"
        text = text.replace("\n" + old, "\n" + "".join(line[1:] for line in lines))
    (root / name).write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, sample_data) -> Path:
    """Copy what the page changes, apply its changes, and add a few frames of the sample."""
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


def test_page_works(changed):
    """Its commands succeed and write the sixth type, correctly in the views that were checked by hand."""
    (commands,), (example,) = blocks("sh"), blocks("text")
    for command in commands.splitlines():
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=changed, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (changed / "nearest.png").exists()
    rows = json.loads((changed / "data" / "valid" / "generated_qa_pairs.json").read_text())
    nearest = {row["image_file"]: row["answer"] for row in rows if row["question"] == QUESTION}
    assert example.strip() == f"{QUESTION} {nearest['valid/00000_07_im.jpg']}"
    assert nearest["valid/00003_03_im.jpg"] == "emule"  # 19.0 from pidgin, the ego kart; sara is 51.1 away
    assert "valid/00000_01_im.jpg" not in nearest  # one kart
    with_others = {row["image_file"] for row in rows if row["question"].startswith("Where is ")}
    assert set(nearest) == with_others


def test_eval_sets_have_six_types(changed):
    done = subprocess.run([sys.executable, "-c", SIX_TYPES], cwd=changed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
