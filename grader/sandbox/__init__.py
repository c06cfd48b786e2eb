"""Sandbox the current process: privileges, resource limits, Landlock, seccomp and Python's audit hooks.

Only workers use it (`worker.py`), before they import a bundle; one without a bundle finds out what is not enforced. It
imports the standard library only, since a worker may run in an environment that has nothing else of the grader's.
"""

import contextlib
import os
import site
import sys
import sysconfig
from pathlib import Path

# The worker imports this package as `sandbox`, not as `grader.sandbox`: that would make a second `homework` importable.
from . import audit_hooks, landlock, libraries, privileges, seccomp

IS_LINUX = sys.platform == "linux"
MAX_OPEN_FILES = 512

# Read by the interpreter, torch and their libraries, in addition to Python's own library folders.
SYSTEM_PATHS = """/lib /lib32 /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/local/lib64 /usr/share/zoneinfo
    /etc/ld.so.cache /etc/localtime /nix/store /System/Library /dev/urandom /dev/random /proc/cpuinfo
    /proc/meminfo /proc/stat /sys/devices/system/cpu /sys/devices/system/node /sys/kernel/mm/transparent_hugepage"""
PROC_SELF_FILES = ("maps", "stat", "statm", "status")  # not environ, mem, fd or task
DEV_NULL = (Path("/dev/null"),)


def readable_paths(job: dict) -> list[Path]:
    """Return what a bundle may read: its own files, its data, cached models, Python's and the system's libraries.

    Of Python it is the folders of libraries, not the prefix: that of a virtual environment may be the folder of a
    project, that of Debian's Python is /usr. Of the hub's cache it is the models, not the datasets beside them.
    """
    paths = {job["root"], job["tokenizer"]}
    with contextlib.suppress(OSError):
        paths |= {os.path.join(job["hub"], name) for name in os.listdir(job["hub"]) if name.startswith("models--")}
    paths |= {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths.add(sysconfig.get_config_var("LIBDIR") or "")  # libpython, and under Conda all shared libraries
    if site.ENABLE_USER_SITE:
        paths.add(site.getusersitepackages())
    paths |= {f"/proc/{name}/{file}" for name in ("self", os.getpid()) for file in PROC_SELF_FILES}
    paths |= {*SYSTEM_PATHS.split(), *os.environ.get("LD_LIBRARY_PATH", "").split(":")}
    absolute = [Path(path) for path in sorted(paths) if os.path.isabs(path) and path != os.sep]
    return absolute + [path.resolve() for path in absolute if not path.is_relative_to("/proc")]


def limit_resources(memory: int) -> list[str]:
    """Limit memory, open files, written bytes and core dumps; return the limits that are not enforced.

    `memory` is in bytes and counts the process's own data, filled or not; `process.py` limits what is resident. Address
    space is not limited, as an allocator reserves far more of it, for each thread, than it uses.
    """
    try:
        import resource
    except ImportError:
        return ["memory, open files, written bytes: this system has no setrlimit"]
    limits = {"RLIMIT_NOFILE": MAX_OPEN_FILES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_DATA": memory}
    failed = []
    for name, value in limits.items():
        try:
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)  # a stricter limit stays
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            failed.append(name)
    if IS_LINUX:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")  # if memory runs out nevertheless, the kernel kills this process first
    return [f"{name}: this system's setrlimit does not limit it" for name in failed]


def enforce_limits(job: dict, program: bytes) -> tuple[list[str], list[Path]]:
    """Sandbox this process irrevocably.

    Args:
        job: readable `root`, `tokenizer` and `hub`, `memory` in bytes, whether it `is_watched`, the ABI of `landlock`
            to use, and `parent`, the grader's pid.
        program: the filter of system calls, from `seccomp.build_filter`.

    Returns:
        the limits that this system does not enforce, one line each, and the readable paths.

    Raises:
        OSError: the kernel refused to drop privileges, or Python's libraries cannot be read without them.
    """
    unenforced, paths = limit_resources(job["memory"]), readable_paths(job)
    if not job["is_watched"]:
        unenforced.append("memory, number of threads: this system's /proc does not tell them")
    if IS_LINUX:
        privileges.drop_privileges(job["parent"])
    else:
        unenforced.append("end of a bundle when the grader itself is killed: needs Linux")
    try:
        landlock.restrict_files(job["landlock"], paths, DEV_NULL)
    except OSError:
        unenforced.append("files: no Landlock (Linux 5.13 or newer); only Python's audit hooks protect yours")
    try:
        seccomp.install_filter(program)
    except OSError:
        gaps = dict.fromkeys(["network", "processes", "signals", *landlock.list_gaps(job["landlock"])])
        remedy = "no seccomp (Linux, with libseccomp2 and `pip install pyseccomp`)"
        unenforced.append(f"{', '.join(gaps)}: {remedy}; only Python's audit hooks block them")
    audit_hooks.add_audit_hook(paths, DEV_NULL)
    libraries.adapt_libraries()
    for folder in map(sysconfig.get_path, ("stdlib", "purelib")):
        with contextlib.suppress(FileNotFoundError):
            os.listdir(folder)  # root without capabilities cannot enter a folder that is another user's alone
    return unenforced, paths
