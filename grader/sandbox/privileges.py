"""Give up this process's privileges: capabilities, core dumps, and life after the grader's death."""

import ctypes
import os
import signal

# linux/prctl.h and linux/capability.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_READ, PR_CAPBSET_DROP = 1, 4, 23, 24
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522


def _call(name: str, *arguments) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments):
        raise OSError(ctypes.get_errno(), f"{name} was refused")


def drop_privileges(parent: int) -> None:
    """Drop all capabilities and core dumps, gain no privileges ever, and die with the process `parent`. Linux only.

    Root without capabilities is an ordinary user that owns root's files. A limit of 0 does not stop a core dump through
    a pipe; a process that is not dumpable has none, and no other process of its user can trace it.

    Raises:
        OSError: the kernel refused.
    """
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc = ctypes.CDLL(None)
    for capability in range(64):  # from the bounding set, which only root can and only root's programs use
        if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", header, none)
    # last, as a change of capabilities may undo them
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)
