"""Which system calls the kernel refuses a bundle: seccomp, through pyseccomp and libseccomp."""

import errno
import os

CLONE_THREAD = 0x00010000
# Memory that RLIMIT_DATA does not count: shared, or a stack by name.
UNCOUNTED_MAPS = (0x21, 0x100)  # MAP_SHARED | MAP_ANONYMOUS, MAP_GROWSDOWN
SET_OWNER, SET_OWNER_EX = 8, 15  # of fcntl(2): whom a file sends signals
SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)

# Beside these: all that came after Linux 5.1 (below), which holds io_uring, the new mount calls, process handles.
REFUSED = {
    "network": "socket socketpair connect bind listen accept accept4",
    "other processes": """fork vfork execve execveat ptrace process_vm_readv process_vm_writev kcmp setsid setpgid
        tkill rt_sigqueueinfo rt_tgsigqueueinfo unshare setns""",
    # what Landlock leaves alone
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
# Numbers are the same on every architecture from 424 on. "No such call" is an answer that every libc can handle.
NEW = range(424, 512)
KEPT = {436, 439, 441, 449}  # close_range, faccessat2, epoll_pwait2, futex_waitv


def available():
    """The pyseccomp module, or None where it or libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError):
        return None
    return pyseccomp


def restrict(seccomp) -> None:
    """From now on the calls above fail. Threads can still be started, processes can't.

    Args:
        seccomp: what `available` gave.

    Raises:
        OSError: there is none, or the kernel refused.
    """
    if seccomp is None:
        raise OSError(errno.ENOSYS, "no seccomp")
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    refuse, unknown = seccomp.ERRNO(errno.EPERM), seccomp.ERRNO(errno.ENOSYS)
    for name in " ".join(REFUSED.values()).split():
        if seccomp.resolve_syscall(seccomp.Arch.NATIVE, name) != -1:  # -1: newer than this libseccomp
            rules.add_rule(refuse, name)
    for number in NEW:
        if number not in KEPT:
            rules.add_rule(unknown, number)
    argument = seccomp.Arg
    # clone3 is unknown, so that threads come through clone, whose flags can be seen
    rules.add_rule(refuse, "clone", argument(0, seccomp.MASKED_EQ, CLONE_THREAD, 0))
    rules.add_rule(refuse, "kill", argument(0, seccomp.NE, os.getpid()))
    rules.add_rule(refuse, "tgkill", argument(0, seccomp.NE, os.getpid()))
    rules.add_rule(refuse, "prlimit64", argument(2, seccomp.NE, 0))
    rules.add_rule(refuse, "prctl", argument(0, seccomp.EQ, SET_PARENT_DEATH_SIGNAL))
    for flags in UNCOUNTED_MAPS:
        rules.add_rule(refuse, "mmap", argument(3, seccomp.MASKED_EQ, flags, flags))
    for command in (SET_OWNER, SET_OWNER_EX):
        rules.add_rule(refuse, "fcntl", argument(1, seccomp.EQ, command))
    rules.load()
