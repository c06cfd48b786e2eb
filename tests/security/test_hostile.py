"""Each hostile bundle gets what it deserves, and nothing of it stays: no process, no file, no change."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grader.grader import Grader
from grader.redact import read_truth, write_asked
from grader.runner import PartError, not_enforced, run_part
from grader.score import score
from grader.unpack import unpacked
from homework.utils.errors import InputError
from tests.fake_bundle import write_data, write_package, write_tokenizer, write_zip

from .bundles import CASES, CLIP, PRELUDE, WITH_TORCH
from .zips import REFUSED

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds: a bundle that is not about time has enough of it on a busy machine too
MARKER = b"98765"  # an argument of whatever a bundle tries to start

linux = pytest.mark.skipif(bool(not_enforced()), reason="this system does not enforce every limit")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data, its truth, a good package, and a folder that is none of a bundle's business."""
    root = tmp_path_factory.mktemp("hostile")
    write_data(root)
    (root / "outside").mkdir()
    (root / "outside" / "old").write_text("old")
    write_package(root / "good")
    return root


@pytest.fixture(scope="module")
def truth(place):
    return read_truth(place / "data")


def state(folder):
    """Every file below a folder, with its content and rights."""
    return {path: (path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in folder.rglob("*")}  # fmt: skip


def processes_of(root):
    """The processes that a bundle left running: those that name its folder, or that carry the mark."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if bytes(root) in line or MARKER in line.split(b"\0"):
            found.append(line)
    return found


def outcome(part, package, truth, timeout, tokenizer=""):
    """The accuracy of the part, or the reason why it has none. Checks that nothing of it is left."""
    with unpacked(package) as root:
        write_asked(truth, root / "data")
        before = state(root)
        try:
            records = run_part(part, root, timeout, tokenizer).records
            result = score(part, truth[part], records)[0].accuracy
        except PartError as error:
            result = str(error)
        (root / "work").rmdir()  # still empty
        assert state(root) == before
        assert not processes_of(root)
    return result


def check(result, expected):
    if isinstance(expected, str):
        assert isinstance(result, str) and re.search(expected, result), result
        assert result.isprintable()
    else:
        assert result == pytest.approx(expected)


@linux
@pytest.mark.parametrize("name", CASES)
def test_hostile_code(place, truth, tmp_path, monkeypatch, name):
    code, expected = CASES[name]
    run_hostile(place, truth, tmp_path, monkeypatch, code, expected)


@linux
@pytest.mark.parametrize("name", WITH_TORCH)
def test_hostile_code_with_torch(place, truth, tmp_path, monkeypatch, name):
    code, expected = WITH_TORCH[name]
    run_hostile(place, truth, tmp_path, monkeypatch, code, expected)


def run_hostile(place, truth, tmp_path, monkeypatch, code, expected):
    monkeypatch.setenv("TUX_SECRET", "of the teacher")
    paths = {"outside": str(place / "outside"), "answers": str(place / "data/valid_grader/balanced_qa_pairs.json")}
    package = write_package(tmp_path / "bundle", PRELUDE.format(**paths, home=str(Path.home())) + code)
    before, shared = state(place), set(os.listdir("/dev/shm"))
    timeout = 1 if "over the limit" in str(expected) else PATIENCE
    check(outcome("vlm", package, truth, timeout), expected)
    assert state(place) == before
    deadline = time.monotonic() + 10  # semaphores of other tests come and go there
    while not set(os.listdir("/dev/shm")) <= shared and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(os.listdir("/dev/shm")) <= shared and not (Path.home() / "tux-hostile").exists()


@linux
@pytest.mark.parametrize("name", CLIP)
def test_hostile_clip(place, truth, tmp_path, name):
    code, expected = CLIP[name]
    write_tokenizer(place / "tokenizer")
    package = write_package(tmp_path / "bundle")
    models = (package / "models.py").read_text()
    line = "        return vision, torch.eye(16)"
    assert line in models
    (package / "models.py").write_text(models.replace(line, f"        {code}\n{line}"))
    check(outcome("clip", package, truth, PATIENCE, place / "tokenizer"), expected)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_zip(place, tmp_path, name):
    build, reason = REFUSED[name]
    bundle = build(tmp_path / "a.zip", place / "good")
    with pytest.raises(InputError, match=reason) as error, unpacked(bundle):
        pass
    assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "../outside/old"])
def test_hostile_folder(place, tmp_path, target):
    package = write_package(tmp_path / "bundle")
    (package / "link").symlink_to(target)
    with pytest.raises(InputError, match="a link to a folder or out of the bundle"), unpacked(package):
        pass


@linux
def test_one_bad_bundle_stops_no_other(place, truth, tmp_path):
    """As a teacher grades a folder of them, side by side: the honest one gets its points."""
    prelude = PRELUDE.format(outside="", answers="", home="") + "def load_clip(): raise OSError('not asked here')\n"
    for name, code in [("honest", ""), *((n, CASES[n][0]) for n in ("os_exit", "fork_bomb_in_c", "closes_everything"))]:
        write_zip(tmp_path / f"{name}.zip", write_package(tmp_path / name, prelude + code))
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    bundles, told = sorted(tmp_path.glob("*.zip")), []
    grades = list(Grader(truth, PATIENCE).grade_all(bundles, 2, told.append))
    points = {grade.bundle.stem: [part.points for part in grade.parts][:1] for grade in grades}
    assert points == {"broken": [], "closes_everything": [0], "fork_bomb_in_c": [0], "honest": [50], "os_exit": [0]}
    assert len(told) == 5 and "not a readable zip" in next(grade.refused for grade in grades if grade.refused)


@linux
def test_a_killed_grader_takes_its_bundle_along(place, tmp_path):
    package = write_package(tmp_path / "bundle", "import time\ndef load_vlm(): time.sleep(1000)")
    command = [sys.executable, "-m", "grader", package, "--data", place / "data"]
    grader = subprocess.Popen([*map(str, command)], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        deadline = time.monotonic() + 30
        while not any(b"worker.py" in line and b'"vlm"' in line for line in processes_of(tmp_path)):
            assert time.monotonic() < deadline and grader.poll() is None
            time.sleep(0.05)
    finally:
        grader.send_signal(signal.SIGKILL)
        grader.wait()
    deadline = time.monotonic() + 10
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(tmp_path)
