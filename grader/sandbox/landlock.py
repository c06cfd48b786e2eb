"""Restrict file access of this process by Landlock, which binds root too.

Three system calls through ctypes. The `landlock` package on PyPI is a development release: it mistakes an old `errno`
for a failure, and supports neither the scope for signals nor the rules for TCP. It would also have to be installed in
each environment that runs bundles.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

# System call numbers, the same on every architecture, and constants of linux/landlock.h
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446
CREATE_RULESET_VERSION = 1
RULE_PATH_BENEATH = 1
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
NUM_FILE_RIGHTS = (13, 14, 15, 15, 16)  # by version of the ABI, from 1 on; the rights are bits from 0 on
NET_RIGHTS, MIN_NET_ABI = 0b11, 4  # bind and connect TCP
SCOPES, MIN_SCOPE_ABI = 0b11, 6  # abstract Unix sockets and signals
# What Landlock does not restrict below a version of its ABI; the filter of system calls closes each of these gaps.
GAPS = {3: "truncation", 4: "network", 5: "ioctl on devices", 6: "signals"}


class _RulesetAttributes(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]


def _syscall(number: int, *arguments) -> int:
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def find_abi_version() -> int:
    """Return the version of Landlock's ABI in this kernel, 0 without Landlock."""
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(CREATE_RULESET_VERSION))
    except OSError:
        return 0


def list_gaps(version: int) -> list[str]:
    """Return what Landlock of this version does not restrict."""
    return [gap for since, gap in GAPS.items() if version < since]


def restrict_files(version: int, readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Allow this process to read what lies in `readable` and write the files `writable`, nothing else.

    It can execute, move, create or delete nothing, and as far as the version supports it use no TCP port and send no
    signal to a process outside. Paths that do not exist are ignored.

    Args:
        version: the ABI to use, from `find_abi_version`.

    Raises:
        OSError: the kernel has no Landlock, or refused.
    """
    if not version:
        raise OSError(errno.ENOSYS, "no Landlock")
    handled = (1 << NUM_FILE_RIGHTS[min(version, len(NUM_FILE_RIGHTS)) - 1]) - 1
    has_net, has_scopes = version >= MIN_NET_ABI, version >= MIN_SCOPE_ABI
    attributes = _RulesetAttributes(handled, NET_RIGHTS * has_net, SCOPES * has_scopes)
    size = 8 * (1 + has_net + has_scopes)  # an older kernel refuses fields that it does not support
    ruleset = _syscall(SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path in readable:
            _allow(ruleset, path, READ_FILE | READ_DIR)
        for path in writable:
            _allow(ruleset, path, (READ_FILE | WRITE_FILE | TRUNCATE) & handled)
        _syscall(SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ~READ_DIR  # the kernel refuses rights that a file cannot have
        rule = ctypes.byref(_PathBeneath(rights, descriptor))
        _syscall(SYS_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(RULE_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)
