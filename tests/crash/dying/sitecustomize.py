"""First on PYTHONPATH, this ends a command at a chosen change of the file system.

DIE_IN names a folder, DIE_AT a number: with that many files opened for writing, renamed or removed in the folder, the
process and its group die of SIGKILL, before the last of those changes is made. DIE_COUNT names a file that gets the
number of such changes where the process ends by itself.
"""

import atexit
import os
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}

folder, fatal, counter = os.environ["DIE_IN"], int(os.environ.get("DIE_AT", 0)), os.environ.get("DIE_COUNT")
changes = 0


def in_folder(path, within: int) -> bool:
    """Whether it is a path in the folder; one relative to an open folder is of `shutil.rmtree`."""
    return within != -1 or (isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(folder + os.sep))


def watch(event: str, arguments: tuple) -> None:
    """Count a change, and die at the chosen one."""
    global changes
    if event == "open":
        counts = isinstance(arguments[2], int) and arguments[2] & WRITES and in_folder(arguments[0], -1)
    else:
        last = arguments[-1] if event in CHANGES else -1
        counts = event in CHANGES and in_folder(arguments[0], last if isinstance(last, int) else -1)
    if counts:
        changes += 1
        if changes == fatal:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def tell() -> None:
    """Write how many changes there were."""
    with open(counter, "w") as stream:
        stream.write(str(changes))


sys.addaudithook(watch)
if counter:
    pid = os.getpid()
    atexit.register(lambda: tell() if os.getpid() == pid else None)
