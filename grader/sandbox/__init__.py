"""Shuts this process in before it imports anything of a bundle: limits, files, system calls, audit hooks.

Only the child process uses it (`child.py`), which is also asked what this system can't enforce.
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
from . import audit_hooks, landlock
from . import seccomp as seccomp_filter

LINUX = sys.platform == "linux"
OPEN_FILES = 512
SHARE_OF_MEMORY = 0.75  # of the machine's, where that is less than the limit

# What the interpreter, torch and their libraries read beside Python's own folders.
SYSTEM = """/lib /lib32 /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/local/lib64 /usr/share/zoneinfo /etc/ld.so.cache
    /etc/localtime /nix/store /System/Library /dev/urandom /dev/random /dev/zero /proc/cpuinfo /proc/meminfo /proc/stat
    /sys/devices/system/cpu /sys/devices/system/node /sys/kernel/mm/transparent_hugepage"""
OWN_PROC = ("maps", "stat", "statm", "status")  # of /proc/self: no environ, mem, fd or task
NOWHERE = (Path("/dev/null"),)


def readable(job: dict) -> list[Path]:
    """The folders and files that a bundle may read: its own, its data, Python's, the system's libraries."""
    paths = {job["root"], job["tokenizer"], job["hub"], sys.prefix, sys.base_prefix, sys.exec_prefix}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    if site.ENABLE_USER_SITE:
        paths.add(site.getusersitepackages())
    paths |= set(SYSTEM.split()) | {f"/proc/{name}/{file}" for name in ("self", os.getpid()) for file in OWN_PROC}
    paths |= set(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    absolute = [Path(path) for path in sorted(paths) if os.path.isabs(path) and path != os.sep]
    return absolute + [path.resolve() for path in absolute if not path.is_relative_to("/proc")]


def limit_resources(memory: int) -> list[str]:
    """Memory, open files, written bytes and core dumps.

    Args:
        memory: bytes of the process's own data. Address space would be the wrong thing to count: an allocator
            reserves far more of it, for each thread, than it uses.

    Returns:
        what is not enforced here, a line each.
    """
    try:
        import resource
    except ImportError:
        return ["memory, open files, written bytes: this system has no setrlimit"]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = min(memory, int(SHARE_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    limits = {"RLIMIT_NOFILE": OPEN_FILES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_DATA": memory}
    failed = []
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (OSError, ValueError):
            failed.append(name)
    if not LINUX:
        failed.append("memory")  # RLIMIT_DATA counts what is mapped on Linux only
    if LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")  # if memory runs out all the same, the kernel ends this process first
    return [f"{name}: this system's setrlimit does not limit it" for name in failed]


def die_with_parent(parent: int) -> list[str]:
    """Be killed when the grader dies, however it dies."""
    if not LINUX:
        return ["a bundle's end when the grader itself is killed: only Linux does that"]
    ctypes.CDLL(None).prctl(seccomp_filter.SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
    return []


def enforce(job: dict) -> list[str]:
    """Shut this process in, for good.

    Args:
        job: `root`, `tokenizer` and `hub`, which it may read, `memory` in bytes, and `parent`, the grader's pid.

    Returns:
        what this system does not enforce, a line each.
    """
    missing = limit_resources(job["memory"]) + die_with_parent(job["parent"])
    paths, seccomp = readable(job), seccomp_filter.available()  # imports, and asks ldconfig for libseccomp
    try:
        landlock.restrict(paths, NOWHERE)
    except OSError:
        missing.append("files: no Landlock (Linux 5.13 or newer); only Python's audit hooks guard yours")
    try:
        seccomp_filter.restrict(seccomp)
    except OSError:
        missing.append(
            "network, processes, signals: no seccomp (Linux, with libseccomp2 and `pip install pyseccomp`); "
            "only Python's audit hooks guard them"
        )
    if not Path("/proc/self/status").exists():
        missing.append("number of threads: this system has no /proc")
    audit_hooks.restrict(paths, NOWHERE)
    return missing
