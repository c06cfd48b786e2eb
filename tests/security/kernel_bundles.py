"""Hostile bundles that bypass Python: whole kinds of system calls, several attempts in each bundle.

As in `bundles.py`, with `call(name, ...)`, a system call by name, and `attempt(name=function, ...)`, which reports each
attempt's error as the reason why there is no score.
"""

from .bundles import HONEST

# After that of `bundles.py`.
PRELUDE = """
import encodings, errno, fcntl
NUMBERS, SEMAPHORE, QUEUE, SEGMENT = {numbers!r}, *{ids!r}
PARENT = os.getppid()
def call(name, *arguments):
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return libc("syscall", ctypes.c_long(NUMBERS[name]), *wide)
def attempt(**attempts):
    results = []
    for name, action in attempts.items():
        try: results.append(f"{{name}}=OK({{action()}})")
        except OSError as error: results.append(f"{{name}}={{errno.errorcode[error.errno]}}")
    raise ValueError(" ".join(results))
def map_memory(address, size, protection=3, flags=0x22):
    mmap, pointer = ctypes.CDLL(None).mmap, ctypes.c_void_p
    mmap.restype, mmap.argtypes = pointer, [pointer, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    return mmap(address, size, protection, flags, -1, 0)
"""
ALL_REFUSED = r'ValueError: (\w+=(EPERM|EACCES|ENOSYS)[ "])+$'
TOO_MUCH = "stopped: used more than 0.3 GB of memory"

KINDS = {
    "changes_the_grader": (
        """
mask, zero = ctypes.create_string_buffer(b"\\1", 128), ctypes.create_string_buffer(64)
def attack(): attempt(
    affinity=lambda: call("sched_setaffinity", PARENT, 8, mask), priority=lambda: call("setpriority", 0, PARENT, 19),
    io=lambda: call("ioprio_set", 1, PARENT, 3 << 13), scheduler=lambda: call("sched_setscheduler", PARENT, 5, zero),
    parameters=lambda: call("sched_setparam", PARENT, zero), attributes=lambda: call("sched_setattr", PARENT, zero, 0),
    limits=lambda: call("prlimit64", PARENT, 7, zero, 0), own_limits=lambda: call("prlimit64", 0, 7, zero, 0),
    reads=lambda: call("prlimit64", PARENT, 7, 0, zero), group=lambda: call("setpgid", PARENT, 0),
    pages=lambda: call("migrate_pages", PARENT, 8, mask, mask), handle=lambda: call("pidfd_open", PARENT, 0))
""",
        ALL_REFUSED,
    ),
    "sets_its_own_affinity": ("def attack(): os.sched_setaffinity(0, os.sched_getaffinity(0))", HONEST),
    "capabilities": (
        """
def attack():
    sets = dict(line.split(":") for line in open("/proc/self/status"))
    names = ["CapInh", "CapPrm", "CapEff", "CapAmb"] + ["CapBnd"] * (os.getuid() == 0)
    assert all(int(sets[name], 16) == 0 for name in names) and int(sets["NoNewPrivs"]) == 1, sets
    assert libc("prctl", 3, 0, 0, 0, 0) == 0  # not dumpable
""",
        HONEST,
    ),
    "uses_capabilities": (
        """
def attack():
    name, flags = os.open(__file__, 0), ctypes.c_long(0x30)
    attempt(undeletable=lambda: call("ioctl", name, 0x40086602, ctypes.byref(flags)),
        shuts_down=lambda: call("ioctl", name, 0x8004587D, ctypes.byref(flags)),
        mounts=lambda: call("mount", b"none", bytes(OUTSIDE), b"tmpfs", 0, None),
        root=lambda: call("chroot", bytes(OUTSIDE)), user=lambda: call("setresuid", 0, 0, 0),
        names=lambda: call("sethostname", b"x", 1), log=lambda: call("syslog", 5, None, 0),
        device=lambda: call("mknodat", -100, bytes(OUTSIDE / "new"), 0o60666, 0xFE00),
        own=lambda: call("capset", b"\\x22\\x05\\x08\\x20" + bytes(4), bytes(24)))
""",
        ALL_REFUSED,
    ),
    "leases_and_locks": (
        """
def attack():
    attempts = {}
    for file in (__file__, encodings.__file__):
        descriptor, number, lock = os.open(file, 0), len(attempts), ctypes.create_string_buffer(32)
        values = {1024: 1, 6: lock, 7: lock, 37: lock, 8: PARENT, 10: 9, 1026: 1, 15: lock}
        for command, value in values.items():
            attempts[f"c{number}_{command}"] = lambda a=(descriptor, command, value): call("fcntl", *a)
        attempts[f"f{number}"] = lambda d=descriptor: call("flock", d, 6)
        attempts[f"w{number}"] = lambda d=descriptor: call("fcntl", d, (7 << 32) | 1024, 1)
    attempt(**attempts)
""",
        ALL_REFUSED,
    ),
    "opens_for_neither": (
        """
def attack():
    old, mine = bytes(OUTSIDE / "old"), __file__.encode()
    attempts = {"empties": lambda: call("openat", -100, mine, os.O_TRUNC, 0)}
    for name, path in (("old", old), ("mine", mine), ("tty", b"/dev/tty")):
        for flags in (3, 3 | os.O_TRUNC, 3 | os.O_NONBLOCK, 3 | os.O_PATH, os.O_RDWR | os.O_TMPFILE):
            attempts[f"{name}_{flags:x}"] = lambda a=(path, flags): call("openat", -100, *a, 0o600)
    attempts["new_call"] = lambda: call("openat2", -100, old, ctypes.create_string_buffer(b"\\3", 24), 24)
    attempts["trunc"] = lambda: call("truncate", mine, 0)
    attempt(**attempts)
""",
        ALL_REFUSED,
    ),
    "objects_of_others": (
        """
def attack(): attempt(
    semaphores=lambda: call("semctl", SEMAPHORE, 0, 0, 0), queue=lambda: call("msgctl", QUEUE, 0, 0),
    segment=lambda: call("shmctl", SEGMENT, 0, 0), attaches=lambda: call("shmat", SEGMENT, 0, 0),
    sends=lambda: call("msgsnd", QUEUE, bytes(16), 1, 0), waits=lambda: call("semop", SEMAPHORE, bytes(6), 1),
    makes=lambda: call("msgget", 0, 0o1666), posix=lambda: call("mq_open", b"x", 0o100, 0o600, None),
    io=lambda: call("io_setup", 1, ctypes.create_string_buffer(8)), keys=lambda: call("keyctl", 0, -3, 1))
""",
        ALL_REFUSED,
    ),
    "wide_arguments": (
        """
WIDE = 1 << 32
def attack(): attempt(
    outlives=lambda: call("prctl", 1, 0, 0, 0, 0), wide=lambda: call("prctl", WIDE | 1, 0, 0, 0, 0),
    dumps=lambda: call("prctl", WIDE | 4, 1, 0, 0, 0), kills=lambda: call("kill", WIDE | PARENT, 0),
    thread=lambda: call("tgkill", WIDE | PARENT, PARENT, 0), types=lambda: call("ioctl", 0, WIDE | 0x5412, b"x"),
    owner=lambda: call("fcntl", 0, WIDE | 8, PARENT), merges=lambda: call("madvise", 0, 0, WIDE | 12),
    affinity=lambda: call("sched_setaffinity", WIDE | PARENT, 8, bytes(8)))
""",
        ALL_REFUSED,
    ),
    "kernel_memory": (
        """
def attack(): attempt(
    pipe=lambda: call("pipe2", ctypes.create_string_buffer(8), 0), event=lambda: call("eventfd2", 0, 0),
    grows=lambda: call("fcntl", 1, 1031, 1 << 20), locks=lambda: call("mlockall", 3),
    file=lambda: call("memfd_create", b"", 0),
    huge=lambda: call("mmap", 0, 1 << 21, 3, 0x40022, -1, 0), watches=lambda: call("inotify_init1", 0),
    timer=lambda: call("timer_create", 1, 0, bytes(8)), poll=lambda: call("epoll_create1", 0))
""",
        ALL_REFUSED,
    ),
}

# Each gets a limit of 0.3 GB.
MEMORY = {
    "memory_by_mprotect": (
        """
def attack():
    libc_ = ctypes.CDLL(None)
    libc_.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    while True:
        piece = map_memory(None, 1 << 24)
        ctypes.memset(piece, 1, 1 << 24)
        libc_.mprotect(piece, 1 << 24, 1)
""",
        TOO_MUCH,
    ),
    "memory_by_page_tables": (
        """
def attack():
    size = 1 << 40
    place = map_memory(None, size, 1, 0x4022)
    libc_ = ctypes.CDLL(None)
    libc_.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc_.madvise(place, size, 15)  # no huge pages
    for offset in range(0, size, 1 << 21): ctypes.c_char.from_address(place + offset).value
""",
        TOO_MUCH,
    ),
}
