"""Bundles in another Python environment, and what of it and of the hub's cache they may read."""

import json
import os
import subprocess
import sys

import pytest

import bundle
from grader.process import PartError
from grader.redact import read_truth, write_redacted_data
from grader.runner import check_answers_are_hidden, probe_sandbox, run_part
from grader.unpack import unpack_bundle
from homework.utils.errors import InputError
from tests.e2e.test_course_environment import COURSE_PYTHON
from tests.fake_bundle import ROOT, run_grader, write_data, write_package

linux = pytest.mark.skipif(bool(probe_sandbox().unenforced), reason="this system does not enforce every limit")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project that is a virtual environment itself, with the data in it. It has no package, pyseccomp neither."""
    root = tmp_path_factory.mktemp("project")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    write_data(root)
    return root


def run_vlm(project, tmp_path, code, part="vlm"):
    with unpack_bundle(write_package(tmp_path / "bundle", code)) as root:
        write_redacted_data(read_truth(project / "data"), root / "data")
        return run_part(part, root, 60, python=str(project / "bin" / "python"))


@linux
def test_a_python_without_packages_is_sandboxed_alike(project, tmp_path):
    attack = f"""
import sys, ctypes
assert sys.prefix == {str(project)!r}
for path in {str(project / "data" / "valid_grader" / "all_mc_qas.json")!r}, "/etc/passwd":
    assert ctypes.CDLL(None).open(path.encode(), 0) == -1
assert ctypes.CDLL(None).socket(2, 1, 0) == -1 and ctypes.CDLL(None).fork() == -1
"""
    assert len(run_vlm(project, tmp_path, attack).records) == 10


INSTANTIATOR = """
import importlib, os, sys, tempfile
_TEMP_DIR = tempfile.TemporaryDirectory()
sys.path.append(_TEMP_DIR.name)
def get_remote_module_template(flag): return "value = {number}"
def _do_instantiate_remote_module_template(name, values, flag):
    with open(os.path.join(_TEMP_DIR.name, name + ".py"), "w") as file:
        file.write(get_remote_module_template(flag).format(**values))
    return importlib.import_module(name)
"""


def test_torchvision_may_be_imported(project, tmp_path):
    """With torch 2.6 that writes a module into a temporary folder and imports it, as this copy does."""
    folder = next(project.glob("lib/python3.*/site-packages")) / "torch" / "distributed" / "nn" / "jit"
    folder.mkdir(parents=True)
    (folder / "instantiator.py").write_text(INSTANTIATOR)
    code = "import importlib\nfound = importlib.import_module('torch.distributed.nn.jit.instantiator')\n"
    code += "assert found._do_instantiate_remote_module_template('made', {'number': 7}, True).value == 7\n"
    assert len(run_vlm(project, tmp_path, code).records) == 10


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import fire", "No module named 'fire'; not the bundle's fault: the environment of "),
        ("from json import AutoModel", "cannot import name 'AutoModel' from 'json'"),
        (
            "def load_vlm():\n    try: import fire\n    except ImportError: raise ImportError('needs fire')",
            "needs fire; ",
        ),
    ],
)
def test_a_missing_module_is_not_the_bundles_fault(project, tmp_path, code, reason):
    with pytest.raises(PartError) as error:
        run_vlm(project, tmp_path, code)
    assert reason in str(error.value) and "the environment of " in str(error.value)
    assert f"{project}/bin/python lacks it, so install it there, or grade with --python" in str(error.value)


@pytest.mark.parametrize(
    "code", ["import models", "from . import nothing", "from .nothing import this", "import homework.x"]
)
def test_a_module_missing_in_the_bundle_is_its_fault(project, tmp_path, code):
    with pytest.raises(PartError, match="import homework: (ImportError|ModuleNotFoundError)") as error:
        run_vlm(project, tmp_path, code)
    assert "environment" not in str(error.value)


def test_a_python_that_cannot_be_started_is_one_line(project, tmp_path):
    package = write_package(tmp_path / "bundle")
    for python, problem in (
        (project / "nowhere", "cannot be started: No such file"),
        ("/bin/false", "exited with status 1"),
    ):
        done = run_grader(package, project / "data", "--python", python)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and problem in done.stderr


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_root_is_told_that_libraries_need_its_capabilities(project, tmp_path):
    """A Python in another user's home: root reads it by a capability, which a bundle must not have."""
    package = write_package(tmp_path / "bundle")
    (project / "lib").chmod(0o700)
    os.chown(project / "lib", 65534, 65534)
    try:
        done = run_grader(package, project / "data", "--python", project / "bin" / "python")
    finally:
        os.chown(project / "lib", 0, 0)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "Permission denied" in done.stderr and "read its libraries without root's rights" in done.stderr


def test_libraries_are_readable_and_not_their_prefix(project, tmp_path, monkeypatch):
    for name in ("models--a--b", "datasets--a--b"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    probe_sandbox.cache_clear()
    try:
        readable = set(probe_sandbox(str(project / "bin" / "python")).readable)
    finally:
        probe_sandbox.cache_clear()
    assert {str(next(project.glob("lib/python3.*/site-packages"))), os.path.dirname(os.__file__)} <= readable
    assert not {str(project), sys.base_prefix, "/usr", str(tmp_path)} & readable
    assert str(tmp_path / "models--a--b") in readable and str(tmp_path / "datasets--a--b") not in readable


@pytest.mark.parametrize("linked", [".", "data/valid_grader", "data/valid_grader/all_mc_qas.json", "data/valid"])
def test_answers_under_a_readable_path_are_refused(tmp_path, linked):
    """The parent refuses to start, whichever part of the data is linked there."""
    sandbox = probe_sandbox()
    write_data(tmp_path / "place")
    check_answers_are_hidden(sandbox, tmp_path / "place" / "data")
    cache = tmp_path / "models--a--b"
    cache.mkdir()
    path = tmp_path / "place" / linked
    path.rename(cache / "moved")
    path.symlink_to(cache / "moved")
    opened = type(sandbox)(sandbox.unenforced, [*sandbox.readable, str(cache)], sandbox.version)
    with pytest.raises(InputError, match=r"answers lie in .*models--a--b, which every bundle may read; move the data"):
        check_answers_are_hidden(opened, tmp_path / "place" / "data")


def test_the_grader_does_not_start_beside_readable_answers(project, tmp_path):
    """--tokenizer opens a folder to bundles."""
    done = run_grader(write_package(tmp_path / "bundle"), project / "data", "--tokenizer", project)
    assert done.returncode == 1 and f"answers lie in {project}, which every bundle may read" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not COURSE_PYTHON.exists(), reason="no environment of the course; run `make course-env`")
def test_the_courses_environment_scores_as_this_one(tiny_data, tmp_path):
    """The shipped models, sandboxed in both, and what bundles of the course's starter import there."""
    bundle.bundle(ROOT / "homework", tmp_path / "mine.zip")
    answers = []
    for python in (sys.executable, COURSE_PYTHON):
        flags = ("--require-sandbox", "--python", python, "--json", tmp_path / "r.json")
        done = run_grader(tmp_path / "mine.zip", tiny_data, *flags)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        parts = json.loads((tmp_path / "r.json").read_text())["parts"]
        answers.append([sample["model_answer"] for part in ("vlm", "clip") for sample in parts[part]["samples"]])
    assert answers[0] == answers[1] and len(answers[0]) > 5
    code = "import torch, torchvision, fire, peft, matplotlib.pyplot\nfrom transformers import AutoModelForVision2Seq\n"
    code += "def load_clip(): raise OSError('none')\n"
    done = run_grader(write_package(tmp_path / "starter", code), tiny_data, "--python", COURSE_PYTHON)
    assert "VLM   0 of 50 points" in done.stdout and "accuracy     0.0%" in done.stdout, done.stdout
    done = run_grader(tmp_path / "starter", tiny_data)
    assert "not the bundle's fault" in done.stdout and "grade with --python" in done.stdout
