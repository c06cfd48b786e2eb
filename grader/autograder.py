"""Pack Gradescope's autograder: `python3 -m grader.autograder OUTPUT.zip`. docs/GRADING.md says how to upload it."""

import json
import stat
import zipfile
from importlib.metadata import version
from pathlib import Path

from homework.utils.cli import run
from homework.utils.errors import check_min
from homework.utils.io import atomic_write, check_writable

PROJECT = Path(__file__).parent.parent
COURSE_REQUIREMENTS = "grader/course_requirements.txt"
GRADER_LIBRARIES = ("tyro", "msgspec", "pyseccomp")  # that the course's environment lacks
CODE = ("grader/**/*.py", "homework/**/*.py", "homework/weights/tux_nano/*.json", COURSE_REQUIREMENTS)

SETUP = """#!/usr/bin/env bash
# Gradescope runs this once, as root, when the autograder is built. AUTOGRADER_ROOT is for tests.
set -euo pipefail
cd "${{AUTOGRADER_ROOT:-/autograder}}/source"
apt-get update
apt-get install -y libseccomp2 python3-venv
python=python3
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then  # as on Ubuntu 22.04
    apt-get install -y python3.11-venv
    python=python3.11
fi
"$python" -m venv .venv
.venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu -r {course} {libraries}
# bundles run without a network: the course's base is loaded from the hub's cache
.venv/bin/python -c "from huggingface_hub import snapshot_download as load
load('HuggingFaceTB/SmolVLM-256M-Instruct', allow_patterns=['*.json', '*.txt', 'model.safetensors'])"
"""

RUN = """#!/usr/bin/env bash
# Gradescope runs this for each submission, which it has unpacked. AUTOGRADER_ROOT is for tests.
root=${{AUTOGRADER_ROOT:-/autograder}} results=$root/results/results.json
cd "$root/source" || exit
# a submission without a score has results too, and is no failure of the autograder
.venv/bin/python -m grader "$root/submission" --timeout {timeout:g} --gradescope "$results" || [ -s "$results" ]
"""


def pack(output: Path, /, *, data: Path = Path("data"), timeout: float = 900.0) -> None:
    """Pack the grader, its evaluation data and Gradescope's two scripts into a zip to upload as autograder.

    Example: python -m grader.autograder autograder.zip

    Args:
        output: the zip to write
        data: the data folder
        timeout: seconds per part, loading included; Gradescope's own time limit has to cover both
    """
    check_min(1, timeout=timeout)
    check_writable(output)
    from .redact import EVAL_FILES, read_truth

    truth = read_truth(data)
    libraries = [f"{name}=={version(name)}" for name in GRADER_LIBRARIES]
    scripts = {
        "setup.sh": SETUP.format(course=COURSE_REQUIREMENTS, libraries=" ".join(libraries)),
        "run_autograder": RUN.format(timeout=timeout),
    }
    with atomic_write(output) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in scripts.items():
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o755) << 16
            archive.writestr(entry, text)
        for file in (file for pattern in CODE for file in sorted(PROJECT.glob(pattern))):
            archive.write(file, file.relative_to(PROJECT))
        for part, rows in truth.items():
            content = [{name: value for name, value in row.items() if name != "image_path"} for row in rows]
            archive.writestr(f"data/{EVAL_FILES[part]}", json.dumps(content))
        for image, file in {row["image_file"]: row["image_path"] for rows in truth.values() for row in rows}.items():
            archive.write(file, f"data/{image}")
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB; it holds the right answers, keep it from students")


if __name__ == "__main__":
    run(pack)
