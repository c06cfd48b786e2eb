"""docs/GRADER_SECURITY.md names only tests that exist; the Dockerfile beside it is sound."""

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

from tests.fake_bundle import ROOT

from . import bundles, kernel_bundles, zips

DOCKERFILE = ROOT / "docs" / "grader.Dockerfile"


def test_documented_tests_exist():
    files = [*Path(ROOT, "tests/grader").glob("test_*.py"), *Path(ROOT, "tests/security").glob("test_*.py")]
    functions = re.findall(r"^def (test_\w+)", "\n".join(file.read_text() for file in files), re.MULTILINE)
    modules = {**vars(bundles), **vars(kernel_bundles)}
    groups = {name: value for name, value in modules.items() if name.isupper() and isinstance(value, dict)}
    known = [*functions, *groups, *(name for group in groups.values() for name in group), *zips.REFUSED]
    text = (ROOT / "docs" / "GRADER_SECURITY.md").read_text()
    rows = re.findall(r"^\| (?!guarantee|---)[^|]*\|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(documented) > 60
    assert [name for name in documented if not fnmatch.filter(known, name)] == []
    assert all("`" in row for row in rows)  # each promise has a test


def read_instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text()).splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def test_the_dockerfile_builds_from_pinned_and_existing_parts():
    instructions = read_instructions()
    names = [name for name, _ in instructions]
    assert set(names) <= {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"} and names[0] == "FROM"
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", instructions[0][1])
    for name, rest in instructions:
        if name == "COPY":
            *sources, target = rest.split()
            assert all((ROOT / source).exists() for source in sources) and target.endswith("/"), rest
        if name == "RUN":
            assert "apt-get" not in rest or all(w in rest for w in ("--no-install-recommends", "rm -rf /var/lib/apt"))
            assert "pip" not in rest or "--no-cache-dir" in rest
    assert "libseccomp2" in DOCKERFILE.read_text() and "pyseccomp" in (ROOT / "requirements.txt").read_text()


def test_the_container_gives_the_grader_no_privileges():
    instructions, text = read_instructions(), DOCKERFILE.read_text()
    last = dict(instructions)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert "RUN" not in [name for name, _ in instructions[instructions.index(("USER", last["USER"])) :]]
    for flag in ("--network none", "--read-only", "--cap-drop ALL", "no-new-privileges", "--memory ", "--pids-limit "):
        assert flag in text, flag
    command = json.loads(last["ENTRYPOINT"]) + json.loads(last["CMD"])
    assert command[0] == "python" and "--require-sandbox" in command
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--require-sandbox" in done.stdout
