"""Start a worker process, hand it its job, and end it when it is done, takes too long or too much."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

from homework.utils.errors import InputError

from .sandbox import landlock
from .sandbox.seccomp import build_filter

WORKER_SCRIPT = Path(__file__).with_name("worker.py")
MAX_MEMORY_BYTES = 8_000_000_000  # 300 million float32 parameters, read and converted, take 3 billion
MAX_MEMORY_SHARE = 0.75  # of the machine's memory, if that is below the limit in bytes
MAX_OUTPUT_BYTES = 16_000_000  # 2,000 long answers take a tenth of it
MAX_THREADS = 1000  # torch starts two or three per core
POLL_SECONDS = 0.01
# A worker gets no other variables: they may hold tokens and paths.
INHERITED_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SYSTEMROOT")
# What the kernel counts for a process, in /proc/PID/status. Mapped files are not in it: they can be read again.
MEMORY_LINE = re.compile(rb"^(?:RssAnon|RssShmem|VmSwap|VmPTE|HugetlbPages):\s+(\d+) kB$", re.MULTILINE)
THREADS_LINE = re.compile(rb"^Threads:\s+(\d+)$", re.MULTILINE)

stop_requested = threading.Event()
_workers: set[subprocess.Popen] = set()


class PartError(Exception):
    """Report in one line why a part has no answers."""


def stop_workers() -> None:
    """Kill all workers and let no others run, as the grader was interrupted."""
    stop_requested.set()
    for worker in list(_workers):
        _kill(worker)


def compute_memory_limit() -> int:
    """Return how much memory a worker may use, in bytes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(MAX_MEMORY_BYTES, int(MAX_MEMORY_SHARE * machine))
    return MAX_MEMORY_BYTES


def read_usage(pid: int) -> tuple[int, int] | None:
    """Return the memory of a process in bytes, page tables included, and its number of threads.

    None if it has ended, or if this system does not tell.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    threads = THREADS_LINE.search(status)
    return 1024 * sum(map(int, MEMORY_LINE.findall(status))), int(threads[1]) if threads else 0


def can_read_usage() -> bool:
    """Return whether this system tells what a worker, which is not dumpable, uses."""
    is_told = read_usage(os.getpid()) is not None
    return is_told and (os.geteuid() == 0 or "hidepid=" not in Path("/proc/self/mounts").read_text())


def find_hub_cache() -> str:
    """Return the hub's cache of models. The folder above it holds a token that no worker may read."""
    from huggingface_hub.constants import HF_HUB_CACHE  # here, as it takes a moment

    return str(Path(HF_HUB_CACHE).resolve())


def _make_environment(work: str) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ},
        **{"HOME": work, "USER": "nobody", "LOGNAME": "nobody", "HF_HOME": work},
        # Empty, as no program can be started; without a PATH Python searches /bin and /usr/bin. On the import of a CUDA
        # build of torch, ctypes would find a compiler and write a file for it.
        "PATH": "",
        **{"HF_HUB_CACHE": find_hub_cache(), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        "CUDA_VISIBLE_DEVICES": "",  # CPU only: a GPU's device files lead to a driver that no sandbox covers
        **{"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        # torch and matplotlib create these on import unless they exist
        **{"TORCHINDUCTOR_CACHE_DIR": work, "MPLCONFIGDIR": work},
    }


def _start(job: dict, python: str) -> subprocess.Popen:
    # An empty working directory: a bundle that relied on the repository's files would fail elsewhere.
    work = Path(job["root"], "work")
    work.mkdir(exist_ok=True)
    job |= {"hub": find_hub_cache(), "landlock": landlock.find_abi_version(), "parent": os.getpid()}
    job |= {"memory": compute_memory_limit(), "is_watched": can_read_usage()}
    # -P: do not import from the script's folder, so that `homework` is the bundle's.
    # Absolute, as it runs in another folder; links stay, as one to Python marks a virtual environment.
    command = [os.path.abspath(shutil.which(python) or python), "-P", str(WORKER_SCRIPT), json.dumps(job)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    environment = _make_environment(str(work))
    try:
        return subprocess.Popen(command, cwd=work, env=environment, start_new_session=True, **pipes)
    except OSError as error:
        raise InputError(python, f"cannot be started: {error.strerror}", "give the path of a Python") from None


def communicate(job: dict, timeout: float, python: str) -> tuple[list[tuple[float, bytes]], int]:
    """Run a worker to its end or kill it; return two lines with their arrival times, and its status.

    Args:
        job: what `worker.py` expects; the limits of every job are added here.
        timeout: seconds from the start of the process to its end.
        python: the interpreter.

    Raises:
        PartError: it was killed.
        InputError: it cannot be started.
    """
    limit, start = compute_memory_limit(), time.monotonic()
    worker = _start(job, python)
    _workers.add(worker)
    output, times = bytearray(), []

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while len(output) <= MAX_OUTPUT_BYTES and (chunk := os.read(worker.stdout.fileno(), 1 << 20)):
                output.extend(chunk)
                times.extend([time.monotonic()] * min(chunk.count(b"\n"), 2 - len(times)))

    reader = threading.Thread(target=read, daemon=True)
    try:
        reader.start()
        with contextlib.suppress(BrokenPipeError), worker.stdin:
            worker.stdin.write(build_filter(worker.pid))
        while reader.is_alive() or worker.poll() is None:
            reader.join(POLL_SECONDS) if reader.is_alive() else time.sleep(POLL_SECONDS)
            seconds = time.monotonic() - start
            if len(output) > MAX_OUTPUT_BYTES:
                raise PartError(f"stopped: sent more than {MAX_OUTPUT_BYTES / 1e6:.0f} MB")
            # one second more for the last output of a worker that has exited
            if seconds > timeout + (worker.poll() is not None):
                raise PartError(f"stopped: exceeded the time limit of {timeout:g} s (raise it with --timeout)")
            if stop_requested.is_set():
                raise PartError("stopped: the grader was interrupted")
            memory, threads = read_usage(worker.pid) or (0, 0)
            if memory > limit:
                raise PartError(f"stopped: used more than {limit / 1e9:.1f} GB of memory")
            if threads > MAX_THREADS:
                raise PartError(f"stopped: more than {MAX_THREADS} threads")
        return list(zip(times, bytes(output).split(b"\n", 2), strict=False)), worker.returncode
    finally:
        _kill(worker)
        worker.wait()
        _workers.discard(worker)
        reader.join(1)  # its end of the pipe closes with the worker
        worker.stdout.close()


def _kill(worker: subprocess.Popen) -> None:
    """Kill a worker's process group; on systems without groups, the worker."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL) if hasattr(os, "killpg") else worker.kill()
