"""Allow system calls by a list, through seccomp. The grader builds the filter, a worker installs it.

`build_filter` needs pyseccomp and libseccomp. `install_filter` needs the standard library only, so that a worker can
run in any Python environment.
"""

import contextlib
import ctypes
import errno
import os
import tempfile

# What loading and running PyTorch models needs, recorded with strace on x86-64, and its kin: other versions of the C
# library read files, wait and sleep by other names. aarch64 has most of these names; the rest do not apply there.
ALLOWED = """
    read readv pread64 preadv preadv2 write writev lseek close close_range dup dup2 dup3
    stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir
    getdents getdents64 fadvise64
    brk mprotect munmap mremap
    futex set_robust_list get_robust_list rseq sched_yield restart_syscall exit exit_group
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack alarm setitimer getitimer
    poll ppoll select pselect6 nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
    getpid getppid gettid getpgid getpgrp getsid getuid geteuid getgid getegid getresuid getresgid getgroups
    getrlimit getrusage sysinfo uname getcpu getrandom
    sched_getaffinity sched_get_priority_min sched_get_priority_max get_mempolicy
""".split()

# From 424 on, numbers are the same on every architecture. Calls of that range that are not allowed fail with ENOSYS,
# which every C library can handle (clone3: threads are started by clone, whose flags a filter can read).
SYSCALLS_SINCE_5_1 = range(424, 512)

INT = 0xFFFFFFFF  # The kernel ignores the upper half of the register of a 32-bit argument.
# linux/sched.h: a thread, in the same namespaces. CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT, CLONE_NEW*, CLONE_IO.
CLONE_THREAD, CLONE_REFUSED = 0x10000, 0x2000 | 0x4000 | 0x8000 | 0x20000 | 0xFE000000
# fcntl.h: Landlock sees neither an access mode of 3, which reads and writes nothing but permits ioctl, nor, below Linux
# 6.2, O_TRUNC without writing. __O_TMPFILE makes a file.
O_ACCMODE, O_CREAT, O_TRUNC, O_TMPFILE, O_ASYNC = 0b11, 0o100, 0o1000, 0o20000000, 0o20000
# No locks, leases, owners, signals, notifications, seals and pipe sizes.
FCNTL_COMMANDS = {"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_GETFL": 3, "F_DUPFD_CLOEXEC": 1030}
F_SETFL = 4
IOCTL_REQUESTS = {"TCGETS": 0x5401, "TCGETS2": 0x802C542A, "TIOCGWINSZ": 0x5413, "FIONCLEX": 0x5450, "FIOCLEX": 0x5451}
# linux/prctl.h. PR_SET_VMA names memory; the vector lengths are those of aarch64.
PRCTL_OPTIONS = {
    "PR_GET_DUMPABLE": 3, "PR_SET_NAME": 15, "PR_GET_NAME": 16, "PR_CAPBSET_READ": 23, "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SVE_GET_VL": 51, "PR_SME_GET_VL": 64, "PR_SET_VMA": 0x53564D41,
}  # fmt: skip
ARCH_PRCTL_OPTIONS = {"ARCH_GET_XCOMP_SUPP": 0x1021, "ARCH_GET_XCOMP_PERM": 0x1022, "ARCH_REQ_XCOMP_PERM": 0x1023}
# MADV_NORMAL to DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE, DONTDUMP, DODUMP, GUARD_INSTALL, GUARD_REMOVE
MADVISE_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 102, 103)
# MAP_GROWSDOWN, MAP_LOCKED, MAP_HUGETLB: no limit counts it, it cannot be swapped out, it is not resident memory.
MAP_SHARED, MAP_PRIVATE, MAP_TYPE, MAP_ANONYMOUS, MAP_REFUSED = 1, 2, 0xF, 0x20, 0x100 | 0x2000 | 0x40000

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2


def _make_rules(pid: int) -> list[tuple[str, tuple[tuple[int, int, int], ...]]]:
    """Return the calls that are allowed with certain arguments only: (name, ((argument, mask, value), ...))."""
    everything = 2**64 - 1
    rules = [(name, ((0, INT, pid),)) for name in ("kill", "tgkill")]
    for who in (0, pid):
        rules += [("prlimit64", ((0, INT, who), (2, everything, 0))), ("sched_setaffinity", ((0, INT, who),))]
    rules.append(("clone", ((0, CLONE_THREAD | CLONE_REFUSED, CLONE_THREAD),)))
    for name, argument in (("open", 1), ("openat", 2)):
        rules.append((name, ((argument, O_ACCMODE | O_CREAT | O_TRUNC | O_TMPFILE, os.O_RDONLY),)))
        rules += [(name, ((argument, O_ACCMODE | O_TMPFILE, mode),)) for mode in (os.O_WRONLY, os.O_RDWR)]
    rules.append(("fcntl", ((1, INT, F_SETFL), (2, O_ASYNC, 0))))
    for name, argument, values in (
        ("fcntl", 1, FCNTL_COMMANDS.values()),
        ("ioctl", 1, IOCTL_REQUESTS.values()),
        ("prctl", 0, PRCTL_OPTIONS.values()),
        ("arch_prctl", 0, ARCH_PRCTL_OPTIONS.values()),
        ("madvise", 2, MADVISE_ADVICE),
    ):
        rules += [(name, ((argument, INT, value),)) for value in values]
    rules.append(("mmap", ((3, MAP_TYPE | MAP_REFUSED, MAP_PRIVATE),)))
    rules.append(("mmap", ((3, MAP_TYPE | MAP_REFUSED | MAP_ANONYMOUS, MAP_SHARED),)))
    return rules


def build_filter(pid: int, architecture: str | None = None) -> bytes:
    """Return a filter for the process `pid` as a program of classic BPF; b"" without pyseccomp or libseccomp.

    Everything that is not allowed fails with EPERM; the process can start threads, but no processes.

    Args:
        architecture: a name of `pyseccomp.Arch`, such as `AARCH64`; this machine's by default.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError):
        return b""
    rules, native = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM)), pyseccomp.Arch.NATIVE
    if architecture:
        rules.add_arch(getattr(pyseccomp.Arch, architecture))
        rules.remove_arch(pyseccomp.system_arch())
    allowed = [(name, ()) for name in ALLOWED] + _make_rules(pid)
    known = {name: pyseccomp.resolve_syscall(native, name) for name, _ in allowed}
    for name, conditions in allowed:
        if known[name] != -1:  # -1: unknown to this libseccomp
            arguments = [pyseccomp.Arg(number, pyseccomp.MASKED_EQ, mask, value) for number, mask, value in conditions]
            rules.add_rule(pyseccomp.ALLOW, name, *arguments)
    for number in set(SYSCALLS_SINCE_5_1) - set(known.values()):
        # a foreign architecture's libseccomp translates the numbers that it knows
        with contextlib.suppress(OSError) if architecture else contextlib.nullcontext():
            rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), number)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    """Enforce a filter in this process for good. It needs no privileges after PR_SET_NO_NEW_PRIVS.

    Raises:
        OSError: the filter is empty, or the kernel refused it.
    """
    if not program:
        raise OSError(errno.ENOSYS, "no seccomp")
    description = _Program(len(program) // 8, program)  # an instruction has 8 bytes
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(description), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp was refused")
