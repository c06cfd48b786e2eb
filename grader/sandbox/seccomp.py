"""Block system calls by seccomp, through pyseccomp and libseccomp."""

import errno
import os

# Constants of linux/sched.h, fcntl.h and linux/prctl.h
CLONE_THREAD = 0x00010000
F_SETOWN, F_SETOWN_EX = 8, 15  # which process a file sends signals to
PR_SET_PDEATHSIG = 1
# Flags of memory that RLIMIT_DATA does not count: MAP_SHARED | MAP_ANONYMOUS, and MAP_GROWSDOWN
UNCOUNTED_MMAP_FLAGS = (0x21, 0x100)

# In addition to all calls since Linux 5.1 (below), such as io_uring, the new mount calls and process handles.
BLOCKED_SYSCALLS = {
    "network": "socket socketpair connect bind listen accept accept4",
    "other processes": """fork vfork execve execveat ptrace process_vm_readv process_vm_writev kcmp setsid setpgid
        tkill rt_sigqueueinfo rt_tgsigqueueinfo unshare setns""",
    # those that Landlock does not cover
    "files": """chmod fchmod fchmodat chown fchown lchown fchownat utime utimes utimensat futimesat truncate ftruncate
        setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr mknod mknodat mount umount2 pivot_root chroot
        open_by_handle_at name_to_handle_at swapon swapoff quotactl sync syncfs inotify_init inotify_init1
        fanotify_init""",
    "shared memory": "shmget shmat shmctl memfd_create mq_open mq_unlink msgget semget userfaultfd",
    "limits": "setrlimit setpriority ioprio_set sched_setscheduler sched_setparam sched_setattr acct",
    "the machine": """bpf perf_event_open add_key request_key keyctl init_module finit_module delete_module kexec_load
        kexec_file_load reboot settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog
        iopl ioperm personality vhangup capset setuid setgid setreuid setregid setresuid setresgid setgroups""",
}
# From 424 on, numbers are the same on every architecture. They fail with ENOSYS, which every libc can handle.
SYSCALLS_SINCE_5_1 = range(424, 512)
ALLOWED_NEW_SYSCALLS = {436, 439, 441, 449}  # close_range, faccessat2, epoll_pwait2, futex_waitv


def import_pyseccomp():
    """Return the pyseccomp module; None if it or libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None
    return pyseccomp


def block_syscalls(pyseccomp) -> None:
    """Make the calls above fail in this process for good. It can still start threads, but no processes.

    Args:
        pyseccomp: the module that `import_pyseccomp` returned.

    Raises:
        OSError: the module is missing, or the kernel refused.
    """
    if pyseccomp is None:
        raise OSError(errno.ENOSYS, "no seccomp")
    rules, argument = pyseccomp.SyscallFilter(pyseccomp.ALLOW), pyseccomp.Arg
    not_permitted, no_such_call = pyseccomp.ERRNO(errno.EPERM), pyseccomp.ERRNO(errno.ENOSYS)
    for name in " ".join(BLOCKED_SYSCALLS.values()).split():
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) != -1:  # -1: unknown to this libseccomp
            rules.add_rule(not_permitted, name)
    for number in set(SYSCALLS_SINCE_5_1) - ALLOWED_NEW_SYSCALLS:
        rules.add_rule(no_such_call, number)
    # clone3 (435) is blocked, so that threads are started by clone, whose flags a filter can read
    rules.add_rule(not_permitted, "clone", argument(0, pyseccomp.MASKED_EQ, CLONE_THREAD, 0))
    for name in ("kill", "tgkill"):
        rules.add_rule(not_permitted, name, argument(0, pyseccomp.NE, os.getpid()))
    rules.add_rule(not_permitted, "prlimit64", argument(2, pyseccomp.NE, 0))
    rules.add_rule(not_permitted, "prctl", argument(0, pyseccomp.EQ, PR_SET_PDEATHSIG))
    for flags in UNCOUNTED_MMAP_FLAGS:
        rules.add_rule(not_permitted, "mmap", argument(3, pyseccomp.MASKED_EQ, flags, flags))
    for command in (F_SETOWN, F_SETOWN_EX):
        rules.add_rule(not_permitted, "fcntl", argument(1, pyseccomp.EQ, command))
    rules.load()
