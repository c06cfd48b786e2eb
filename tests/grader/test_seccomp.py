"""The filter of system calls, run by a small interpreter of classic BPF: here and on aarch64."""

import os
import struct

import pytest

from grader.sandbox import seccomp

pyseccomp = pytest.importorskip("pyseccomp")
PID = 4321
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026  # of linux/seccomp.h, with an error number
AUDIT_ARCHITECTURES = {"X86_64": 0xC000003E, "AARCH64": 0xC00000B7}
# Calls that must be refused whatever their arguments, on both architectures unless they have no such call.
REFUSED = """
    socket socketpair connect bind sendmsg recvmsg fork vfork execve execveat ptrace process_vm_readv kcmp unshare setns
    tkill rt_sigqueueinfo pidfd_open io_setup io_submit shmget shmat shmctl semget semop semctl msgget msgsnd msgctl
    mq_open memfd_create eventfd2 timerfd_create inotify_init1 fanotify_init pipe pipe2 splice tee vmsplice
    flock fchmod chmod chown utimensat truncate ftruncate fallocate mkdirat unlinkat renameat2 linkat symlinkat mknodat
    setxattr mount umount2 chroot pivot_root swapon quotactl sync syncfs name_to_handle_at open_by_handle_at
    setrlimit setpriority ioprio_set sched_setscheduler sched_setattr mlock mlockall mlock2 mincore migrate_pages mbind
    bpf perf_event_open userfaultfd add_key keyctl init_module kexec_load reboot personality capset setuid setgroups
    setsid setpgid sethostname settimeofday clock_settime syslog acct vhangup
""".split()
CLONE_OF_A_THREAD = 0x3D0F00
UPPER = 7 << 32  # the kernel ignores this half of an int
CASES = [  # call, arguments, whether it is allowed
    ("read", (3, 0, 10), True),
    ("futex", (), True),
    ("kill", (PID, 9), True), ("kill", (PID | UPPER, 9), True),
    ("kill", (PID + 1, 9), False), ("kill", (2**64 - 1, 9), False),
    ("tgkill", (PID, PID + 5, 6), True), ("tgkill", (1, 1, 6), False),
    ("clone", (CLONE_OF_A_THREAD,), True), ("clone", (17,), False), ("clone", (CLONE_OF_A_THREAD | 0x4000,), False),
    ("clone", (CLONE_OF_A_THREAD | 0x10000000,), False),
    ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), True), ("openat", (0, 0, os.O_WRONLY | os.O_TRUNC), True),
    ("openat", (0, 0, 3), False), ("openat", (0, 0, 3 | UPPER), False), ("openat", (0, 0, os.O_TRUNC), False),
    ("openat", (0, 0, os.O_CREAT), False), ("openat", (0, 0, os.O_RDWR | os.O_TMPFILE), False),
    ("fcntl", (3, 1), True), ("fcntl", (3, 1030, 9), True), ("fcntl", (3, 4, os.O_NONBLOCK), True),
    ("fcntl", (3, 4, 0o20000), False), *(("fcntl", (3, 1024 | half, 1), False) for half in (0, UPPER)),
    *(("fcntl", (3, command), False) for command in (5, 6, 7, 8, 10, 15, 37, 38, 1026, 1031, 1033)),
    ("ioctl", (1, 0x5401), True), ("ioctl", (1, 0x5401 | UPPER), True),
    *(("ioctl", (1, request), False) for request in (0x5412, 0x80086601, 0x40086602, 0x541B, 0x5421)),
    ("prctl", (15,), True),
    *(("prctl", (option | half,), False) for option in (1, 4, 22, 24, 28, 36) for half in (0, UPPER)),
    ("prlimit64", (0, 7, 0, 99), True), ("prlimit64", (PID, 7, 0, 99), True), ("prlimit64", (PID + 1, 7, 0, 99), False),
    ("prlimit64", (0, 7, UPPER, 0), False), ("prlimit64", (0, 7, 1, 0), False),
    ("sched_setaffinity", (0, 8), True), ("sched_setaffinity", (PID,), True), ("sched_setaffinity", (PID + 1,), False),
    ("mmap", (0, 9, 3, 0x22), True), ("mmap", (0, 9, 1, 0x01), True), ("mmap", (0, 9, 5, 0x802), True),
    *(("mmap", (0, 9, 3, flags), False) for flags in (0x21, 0x122, 0x2022, 0x40022, 0x23, 0x28)),
    ("madvise", (0, 9, 4), True), *(("madvise", (0, 9, advice), False) for advice in (9, 12, 100, 101)),
]  # fmt: skip


def run_program(program: bytes, architecture: str, number: int, arguments: tuple[int, ...]) -> int:
    """Return the action of a filter for one call."""
    data = struct.pack(
        "<iIQ6Q", number, AUDIT_ARCHITECTURES[architecture], 0, *(*arguments, *[0] * (6 - len(arguments)))
    )
    instructions, position, accumulator = list(struct.iter_unpack("<HBBI", program)), 0, 0
    while True:
        code, on_true, on_false, value = instructions[position]
        position += 1
        if code == 0x20:  # load a word
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif code == 0x54:
            accumulator &= value
        elif code == 0x05:
            position += value
        elif code == 0x06:
            return value
        else:
            test = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[code]
            position += on_true if test else on_false


@pytest.fixture(scope="module", params=AUDIT_ARCHITECTURES)
def check(request):
    """Return a function that gives the action for a call by name; None if the architecture does not have it."""
    architecture = getattr(pyseccomp.Arch, request.param)
    program = seccomp.build_filter(PID, request.param if architecture != pyseccomp.system_arch() else None)
    assert 0 < len(program) // 8 <= 4096  # the kernel's limit

    def check(name: str, arguments: tuple[int, ...] = ()) -> int | None:
        number = pyseccomp.resolve_syscall(architecture, name)
        return None if number < 0 else run_program(program, request.param, number, arguments)

    return check


def test_arguments_are_compared_at_their_width(check):
    assert [case for case in CASES if check(*case[:2]) != (ALLOW if case[2] else EPERM)] == []


def test_calls_outside_the_list_are_refused(check):
    assert {name for name in REFUSED if check(name) not in (EPERM, ENOSYS, None)} == set()
    assert check("clone3") == check("io_uring_setup") == check("openat2") == ENOSYS  # for which a C library has another
    assert all(check(name) in (ALLOW, None) for name in seccomp.ALLOWED)


def test_the_filter_ends_a_call_of_another_architecture():
    program = seccomp.build_filter(PID)
    other = "AARCH64" if pyseccomp.system_arch() == pyseccomp.Arch.X86_64 else "X86_64"
    assert run_program(program, other, 0, ()) == 0  # SECCOMP_RET_KILL_THREAD
