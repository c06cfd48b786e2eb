"""Sandbox the current process: resource limits, Landlock, seccomp and Python's audit hooks.

Only workers use it (`worker.py`), before they import a bundle; one without a bundle finds out what is not enforced.
"""

import contextlib
import ctypes
import os
import signal
import site
import sys
import sysconfig
from pathlib import Path

# The worker imports this package as `sandbox`, not as `grader.sandbox`: that would make a second `homework` importable.
from . import audit_hooks, landlock, seccomp

IS_LINUX = sys.platform == "linux"
MAX_OPEN_FILES = 512
MAX_MEMORY_SHARE = 0.75  # of the machine's memory, if that is below the limit in bytes

# Read by the interpreter, torch and their libraries, in addition to Python's own folders.
SYSTEM_PATHS = """/lib /lib32 /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/local/lib64 /usr/share/zoneinfo
    /etc/ld.so.cache /etc/localtime /nix/store /System/Library /dev/urandom /dev/random /dev/zero /proc/cpuinfo
    /proc/meminfo /proc/stat /sys/devices/system/cpu /sys/devices/system/node /sys/kernel/mm/transparent_hugepage"""
PROC_SELF_FILES = ("maps", "stat", "statm", "status")  # not environ, mem, fd or task
DEV_NULL = (Path("/dev/null"),)


def readable_paths(job: dict) -> list[Path]:
    """Return what a bundle may read: its own files, its data, Python's and the system's libraries."""
    paths = {job["root"], job["tokenizer"], job["hub"], sys.prefix, sys.base_prefix, sys.exec_prefix}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if site.ENABLE_USER_SITE:
        paths.add(site.getusersitepackages())
    paths |= {f"/proc/{name}/{file}" for name in ("self", os.getpid()) for file in PROC_SELF_FILES}
    paths |= {*SYSTEM_PATHS.split(), *os.environ.get("LD_LIBRARY_PATH", "").split(":")}
    absolute = [Path(path) for path in sorted(paths) if os.path.isabs(path) and path != os.sep]
    return absolute + [path.resolve() for path in absolute if not path.is_relative_to("/proc")]


def limit_resources(memory: int) -> list[str]:
    """Limit memory, open files, written bytes and core dumps; return the limits that are not enforced.

    `memory` is in bytes and counts the process's own data. Address space is not limited, as an allocator reserves far
    more of it, for each thread, than it uses.
    """
    try:
        import resource
    except ImportError:
        return ["memory, open files, written bytes: this system has no setrlimit"]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = min(memory, int(MAX_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    limits = {"RLIMIT_NOFILE": MAX_OPEN_FILES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_DATA": memory}
    failed = []
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (OSError, ValueError):
            failed.append(name)
    if IS_LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")  # if memory runs out nevertheless, the kernel kills this process first
    else:
        failed.append("memory")  # RLIMIT_DATA counts mapped memory on Linux only
    return [f"{name}: this system's setrlimit does not limit it" for name in failed]


def set_parent_death_signal(parent: int) -> list[str]:
    """Have the kernel kill this process when the grader dies; return that limit if it is not enforced."""
    if not IS_LINUX:
        return ["end of a bundle when the grader itself is killed: needs Linux"]
    ctypes.CDLL(None).prctl(seccomp.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    return []


def enforce_limits(job: dict) -> list[str]:
    """Sandbox this process irrevocably.

    Args:
        job: readable `root`, `tokenizer` and `hub`, `memory` in bytes, and `parent`, the grader's pid.

    Returns:
        the limits that this system does not enforce, one line each.
    """
    unenforced = limit_resources(job["memory"]) + set_parent_death_signal(job["parent"])
    paths, pyseccomp = readable_paths(job), seccomp.import_pyseccomp()  # which runs ldconfig to find libseccomp
    try:
        landlock.restrict_files(paths, DEV_NULL)
    except OSError:
        unenforced.append("files: no Landlock (Linux 5.13 or newer); only Python's audit hooks protect yours")
    try:
        seccomp.block_syscalls(pyseccomp)
    except OSError:
        unenforced.append(
            "network, processes, signals: no seccomp (Linux, with libseccomp2 and `pip install pyseccomp`); "
            "only Python's audit hooks block them"
        )
    if not Path("/proc/self/status").exists():
        unenforced.append("number of threads: this system has no /proc")
    audit_hooks.add_audit_hook(paths, DEV_NULL)
    return unenforced
