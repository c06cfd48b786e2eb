"""docs/GRADER_SECURITY.md names only tests that exist."""

import fnmatch
import re
from pathlib import Path

from tests.fake_bundle import ROOT

from . import bundles, zips


def test_documented_tests_exist():
    files = [*Path(ROOT, "tests/grader").glob("test_*.py"), *Path(ROOT, "tests/security").glob("test_*.py")]
    functions = re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE)
    groups = [name for name, value in vars(bundles).items() if name.isupper() and isinstance(value, dict)]
    known = [*functions, *groups, *bundles.CASES, *bundles.WITH_TORCH, *bundles.CLIP, *zips.REFUSED]
    text = (ROOT / "docs" / "GRADER_SECURITY.md").read_text()
    rows = [line.split("|")[3] for line in text.splitlines() if line.startswith("| ") and "| tests |" not in line]
    documented = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(documented) > 60
    assert [name for name in documented if not fnmatch.filter(known, name)] == []
