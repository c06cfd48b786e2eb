"""Links of the Markdown pages lead somewhere: to files, headings, files in backticks and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CREDITS.md", "pretrain/README.md")]
PAGES += [page for page in (ROOT / "docs").rglob("*.md") if "experiments" not in page.parts]  # a log keeps old names
TESTS = {file: file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py")}


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://", "mailto:")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CREDITS.md"], ids=lambda page: page.name)
def test_named_files_and_tests_exist(page: Path):
    """Files of the repository in backticks exist, and so does every `test_*`; the changelog may name old ones."""
    text = page.read_text(encoding="utf-8")
    assert "../shared" not in text
    if page.name == "CHANGELOG.md":
        return
    for name in re.findall(r"`((?:homework|pretrain|supertux|grader|viewer|benchmarks|tests|docs)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\b(test_\w+)\b(?!\.py)", text):
        assert any(re.search(rf"\b{name}\b", source) or file.stem == name for file, source in TESTS.items()), name
    for name in re.findall(r"\b(test_\w+\.py)\b", text):
        assert any(file.name == name for file in TESTS), name
