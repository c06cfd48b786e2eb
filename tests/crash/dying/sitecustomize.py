"""Kill a command at a chosen file system change; Python imports this if it is first on PYTHONPATH.

DIE_IN names a folder, DIE_AT a number: the process group gets SIGKILL just before that many files have been opened for
writing, renamed or removed in the folder. DIE_COUNT names a file that receives the number of changes at a normal exit.
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
    """Return whether a path is in the folder; a path relative to an open folder is `shutil.rmtree`'s."""
    return within != -1 or (isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(folder + os.sep))


def watch(event: str, arguments: tuple) -> None:
    """Count a change; kill the process group at the chosen one."""
    global changes
    if event == "open":
        is_change = isinstance(arguments[2], int) and arguments[2] & WRITES and in_folder(arguments[0], -1)
    else:
        last = arguments[-1] if event in CHANGES else -1
        is_change = event in CHANGES and in_folder(arguments[0], last if isinstance(last, int) else -1)
    if is_change:
        changes += 1
        if changes == fatal:
            os.killpg(os.getpgrp(), signal.SIGKILL)


def write_count() -> None:
    """Write the number of changes."""
    with open(counter, "w") as stream:
        stream.write(str(changes))


sys.addaudithook(watch)
if counter:
    pid = os.getpid()
    atexit.register(lambda: write_count() if os.getpid() == pid else None)
