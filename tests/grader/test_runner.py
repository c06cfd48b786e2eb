"""Workers: their failures, what they may do, and the memory limit."""

import pytest

from grader.process import PartError
from grader.redact import read_truth, write_redacted_data
from grader.runner import Sandbox, probe_sandbox, run_part
from grader.unpack import unpack_bundle
from tests.fake_bundle import run_grader, write_package

linux = pytest.mark.skipif(bool(probe_sandbox().unenforced), reason="this system does not enforce every limit")


def run_vlm(place, tmp_path, models, timeout=60.0):
    """Run the VLM part alone, its models changed by the code `models`."""
    with unpack_bundle(write_package(tmp_path / "bundle", models)) as root:
        write_redacted_data(read_truth(place / "data"), root / "data")
        return run_part("vlm", root, timeout, place / "tokenizer")


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ("def load_vlm(): raise ValueError('broken')", "homework.load_vlm(): ValueError: broken"),
        ("def load_vlm(): raise SystemExit(0)", "homework.load_vlm(): SystemExit: 0"),
        ("raise ImportError('no such thing')", "import homework: ImportError: no such thing"),
        ("def load_vlm(): os._exit(3)", "exited with status 3 before answering"),
        ("def load_vlm(): os._exit(0)", "exited before answering"),
        ("def load_vlm(): os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("def load_vlm(): os.kill(os.getpid(), 40)", "killed by signal 40"),
        ("Weight.numel = lambda self: 300_000_001", "300,000,001 parameters, more than 300,000,000"),
        ("VLM.answer = lambda self, paths, questions: []", "0 answers to 1 questions"),
        ("VLM.answer = lambda self, paths, questions: [1]", "an answer is not a string"),
        ("VLM.answer = lambda self, paths, questions: 1 / 0", "homework.data.benchmark: ZeroDivisionError"),
    ],
)
def test_failures_give_one_line(place, tmp_path, models, reason):
    with pytest.raises(PartError) as error:
        run_vlm(place, tmp_path, models)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "attempt",
    [
        "import ctypes.util; assert ctypes.util.find_library('nowhere') is None",  # it must not try a compiler
        """
import errno
try: os.mkdir("cache")
except OSError as error: assert error.errno == errno.EACCES and str(error)
""",
    ],
)
def test_libraries_may_attempt_blocked_actions(place, tmp_path, attempt):
    """Python 3.12 and 3.13: CUDA builds of torch search for libraries, shutil changes caught errors."""
    assert len(run_vlm(place, tmp_path, attempt).records) == 10


def test_a_running_thread_does_not_delay_the_grader(place, tmp_path):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()"
    assert len(run_vlm(place, tmp_path, threads, timeout=20).records) == 10


@linux
def test_memory_is_limited(tmp_path, monkeypatch):
    """The limit counts what a bundle fills, in small pieces too, not what it reserves."""
    monkeypatch.setattr("grader.process.MAX_MEMORY_BYTES", 200_000_000)
    models = "def load_vlm():\n    kept = []\n    while True: kept.append(bytes(100_000))"
    package = write_package(tmp_path / "bundle", models)
    with unpack_bundle(package) as root, pytest.raises(PartError, match="MemoryError|more than 0.2 GB of memory"):
        run_part("vlm", root, 60)


@linux
def test_a_stricter_limit_of_the_system_stays(place, tmp_path):
    """It is enforced, though ours cannot be set."""
    import resource

    def restrict():
        for kind, value in ((resource.RLIMIT_NOFILE, 300), (resource.RLIMIT_DATA, 4_000_000_000)):
            resource.setrlimit(kind, (value, value))

    models = "import resource as r\ndef load_clip(): raise OSError('none')\ndef load_vlm():\n"
    models += (
        "    assert r.getrlimit(r.RLIMIT_NOFILE) == (300, 300) and r.getrlimit(r.RLIMIT_DATA)[0] <= 4_000_000_000\n"
    )
    package = write_package(tmp_path / "bundle", models + "    return VLM()")
    done = run_grader(package, place / "data", "--require-sandbox", preexec_fn=restrict)
    assert "VLM   50 of 50 points" in done.stdout and done.stderr == ""


def test_memory_that_cannot_be_watched_is_not_enforced(monkeypatch):
    monkeypatch.setattr("grader.process.can_read_usage", lambda: False)
    unenforced = probe_sandbox.__wrapped__().unenforced
    assert "memory, number of threads: this system's /proc does not tell them" in unenforced


@pytest.mark.parametrize(
    ("version", "line"),
    [
        (7, "sandbox: Landlock ABI 7"),
        (5, "sandbox: Landlock ABI 5, which does not cover signals: seccomp does"),
        (
            2,
            "sandbox: Landlock ABI 2, which does not cover truncation, network, ioctl on devices, signals: "
            "seccomp does",
        ),
        (0, "sandbox: no Landlock"),
    ],
)
def test_the_kernels_gaps_are_described(version, line):
    assert Sandbox([], [], version).describe() == line
