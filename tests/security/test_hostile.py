"""Each hostile bundle has the expected outcome and leaves no process, no file and no change behind."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from grader.grader import Grader
from grader.process import PartError
from grader.redact import read_truth, write_redacted_data
from grader.runner import probe_sandbox, run_part
from grader.score import score_part
from grader.unpack import unpack_bundle
from homework.utils.errors import InputError
from tests.fake_bundle import ROOT, grader_command, write_package, write_tokenizer, write_zip

from . import kernel_bundles
from .bundles import CASES, CLIP, PRELUDE, WITH_TORCH
from .zips import REFUSED

TIMEOUT_SECONDS = 600  # generous, for busy machines; bundles that test the time limit get 1
MARKER = b"98765"  # an argument of each process that a bundle tries to start

linux = pytest.mark.skipif(bool(probe_sandbox().unenforced), reason="this system does not enforce every limit")


@pytest.fixture(scope="module")
def truth(place):
    return read_truth(place / "data")


def read_state(folder):
    """Return every file below a folder with its mode, time and content."""
    return {path: (path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in folder.rglob("*")}  # fmt: skip


def find_processes(root):
    """Return the running processes that name the bundle's folder or the marker in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if bytes(root) in line or MARKER in line.split(b"\0"):
            found.append(line)
    return found


def run_and_score(part, package, truth, timeout, tokenizer="", **options):
    """Run a part; return its accuracy, or why it has none. Checks that it leaves nothing behind."""
    with unpack_bundle(package) as root:
        write_redacted_data(truth, root / "data")
        root.chmod(0o755)  # for workers of another user
        before = read_state(root)
        try:
            records = run_part(part, root, timeout, tokenizer, **options).records
            result = score_part(part, truth[part], records)[0].accuracy
        except PartError as error:
            result = str(error)
        (root / "work").rmdir()  # raises unless it is still empty
        assert read_state(root) == before
        assert not find_processes(root)
    return result


def assert_outcome(result, expected):
    if isinstance(expected, str):
        assert isinstance(result, str) and re.search(expected, result), result
        assert result.isprintable()
    else:
        assert result == pytest.approx(expected)


@linux
@pytest.mark.parametrize("name", CASES)
def test_hostile_code(place, truth, tmp_path, monkeypatch, setting, name):
    run_hostile(place, truth, tmp_path, monkeypatch, PRELUDE, *CASES[name], **setting)


@linux
@pytest.mark.parametrize("name", WITH_TORCH)
def test_hostile_code_with_torch(place, truth, tmp_path, monkeypatch, name):
    run_hostile(place, truth, tmp_path, monkeypatch, PRELUDE, *WITH_TORCH[name])


@linux
@pytest.mark.parametrize("name", kernel_bundles.KINDS | kernel_bundles.MEMORY)
def test_hostile_system_calls(place, truth, tmp_path, monkeypatch, setting, system_objects, name):
    seccomp = pytest.importorskip("pyseccomp")
    if name in kernel_bundles.MEMORY:
        monkeypatch.setattr("grader.process.MAX_MEMORY_BYTES", 300_000_000)
    code, expected = (kernel_bundles.KINDS | kernel_bundles.MEMORY)[name]
    names = re.findall(r'call\("(\w+)"', code)
    numbers = {name: seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) for name in names}
    prelude = PRELUDE + kernel_bundles.PRELUDE.format(numbers=numbers, ids=system_objects)
    before = os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), os.getpgid(0)
    run_hostile(place, truth, tmp_path, monkeypatch, prelude, code, expected, **setting)
    assert (os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), os.getpgid(0)) == before


def run_hostile(place, truth, tmp_path, monkeypatch, prelude, code, expected, **options):
    monkeypatch.setenv("TUX_SECRET", "secret")
    paths = {"outside": str(place / "outside"), "answers": str(place / "data/valid_grader/balanced_qa_pairs.json")}
    prelude = prelude.replace(PRELUDE, PRELUDE.format(**paths, home=str(Path.home())))
    package = write_package(tmp_path / "bundle", prelude + code)
    before, shared = read_state(place), set(os.listdir("/dev/shm"))
    timeout = 1 if "time limit" in str(expected) else TIMEOUT_SECONDS
    assert_outcome(run_and_score("vlm", package, truth, timeout, **options), expected)
    assert read_state(place) == before
    deadline = time.monotonic() + 10  # other tests create semaphores there for a while
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
    assert_outcome(run_and_score("clip", package, truth, TIMEOUT_SECONDS, place / "tokenizer"), expected)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_hostile_zip(place, tmp_path, name):
    build, reason = REFUSED[name]
    bundle = build(tmp_path / "a.zip", place / "good")
    with pytest.raises(InputError, match=reason) as error, unpack_bundle(bundle):
        pass
    assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "../outside/old"])
def test_hostile_folder(place, tmp_path, target):
    package = write_package(tmp_path / "bundle")
    (package / "link").symlink_to(target)
    with pytest.raises(InputError, match="a link to a folder or out of the bundle"), unpack_bundle(package):
        pass


@linux
def test_a_bad_bundle_does_not_stop_others(place, truth, tmp_path):
    """Graded in parallel, the honest bundle gets its points."""
    prelude = PRELUDE.format(outside="", answers="", home="") + "def load_clip(): raise OSError('not needed')\n"
    for name, code in [("honest", ""), *((n, CASES[n][0]) for n in ("os_exit", "fork_bomb_in_c", "closes_everything"))]:
        write_zip(tmp_path / f"{name}.zip", write_package(tmp_path / name, prelude + code))
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    bundles, results = sorted(tmp_path.glob("*.zip")), []
    grades = list(Grader(truth, TIMEOUT_SECONDS).grade_all(bundles, 2, results.append))
    points = {grade.bundle.stem: [part.points for part in grade.parts][:1] for grade in grades}
    assert points == {"broken": [], "closes_everything": [0], "fork_bomb_in_c": [0], "honest": [50], "os_exit": [0]}
    assert len(results) == 5 and "not a readable zip" in next(grade.refused for grade in grades if grade.refused)


@linux
def test_killing_the_grader_ends_its_worker(place, tmp_path):
    package = write_package(tmp_path / "bundle", "import time\ndef load_vlm(): time.sleep(1000)")
    grader = subprocess.Popen(
        grader_command(package, place / "data"), cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    try:
        deadline = time.monotonic() + 30
        while not any(b"worker.py" in line and b'"vlm"' in line for line in find_processes(tmp_path)):
            assert time.monotonic() < deadline and grader.poll() is None
            time.sleep(0.05)
    finally:
        grader.send_signal(signal.SIGKILL)
        grader.wait()
    deadline = time.monotonic() + 10
    while find_processes(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not find_processes(tmp_path)
