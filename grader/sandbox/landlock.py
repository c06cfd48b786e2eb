"""Landlock: the kernel then refuses this process every file that it was not given, as root too.

Three system calls through ctypes. The `landlock` package on PyPI is a development release: it takes an old `errno`
for a failure, and it knows neither the scope for signals nor the rules for TCP.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
VERSION_FLAG = 1
PATH_BENEATH = 1
NO_NEW_PRIVILEGES = 38  # of prctl(2)
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
# How many rights on files the first, second, ... version of the interface knows; the rights are bits from 0 on.
FILE_RIGHTS = (13, 14, 15, 15, 16)
NET_RIGHTS = 0b11  # bind and connect TCP, from the fourth version on
SCOPES = 0b11  # abstract Unix sockets and signals, from the sixth on


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]


def _call(number: int, *arguments) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def version() -> int:
    """Of the kernel's interface; 0 where there is none."""
    if sys.platform != "linux":
        return 0
    try:
        return _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))
    except OSError:
        return 0


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """From now on this process may read what lies in `readable`, and write the files `writable`; nothing else.

    Nothing can be executed, moved, made or deleted, no TCP port used, and no process outside be sent a signal.
    Paths that are not there are left out.

    Raises:
        OSError: the kernel has no Landlock, or refused.
    """
    number = version()
    if not number:
        raise OSError(errno.ENOSYS, "no Landlock")
    handled = (1 << FILE_RIGHTS[min(number, len(FILE_RIGHTS)) - 1]) - 1
    attributes = _Ruleset(handled, NET_RIGHTS if number >= 4 else 0, SCOPES if number >= 6 else 0)
    size = 24 if number >= 6 else 16 if number >= 4 else 8  # a kernel takes the fields that it knows
    ruleset = _call(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in readable:
            _allow(ruleset, path, READ_FILE | READ_DIR)
        for path in writable:
            _allow(ruleset, path, (READ_FILE | WRITE_FILE | TRUNCATE) & handled)
        if ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs was refused")
        _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ~READ_DIR  # a right that a file cannot have is refused
        rule = _PathBeneath(rights, descriptor)
        _call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0))
    finally:
        os.close(descriptor)
