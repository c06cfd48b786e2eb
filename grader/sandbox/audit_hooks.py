"""Python's audit hooks: the second line behind the kernel, and the only one where it offers nothing.

They see what goes through Python, not what a bundle does through ctypes.
"""

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = frozenset(
    """os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.killpg os.startfile subprocess.Popen pty.spawn
    signal.pthread_kill os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.lchown
    os.chflags os.utime os.setxattr os.removexattr resource.setrlimit resource.prlimit sqlite3.connect
    syslog.openlog syslog.syslog webbrowser.open urllib.Request http.client.connect pickle.find_class""".split()
)
HARMLESS = {"socket.gethostname"}


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """From now on Python refuses to open other files, to write, and to start, signal or call anyone.

    `pickle` loads no classes either: `torch.load(weights_only=True)`, which needs none of it, does.
    """
    folders = tuple(os.path.join(path, "") for path in readable)
    files, devices = {str(path) for path in readable}, {str(path) for path in writable}
    # kept here, since a bundle can change the modules
    stat, join, normal, cwd, decode = os.stat, os.path.join, os.path.normpath, os.getcwd, os.fsdecode
    pid, refused, harmless, writing = os.getpid(), REFUSED, HARMLESS, WRITING

    def denied(what: str, path: str | None = None) -> PermissionError:
        # with an errno, as the kernel's own: libraries that only try handle that, and some change its filename
        return PermissionError(errno.EACCES, f"the grader allows no {what}", path)

    def check_open(path, flags: int) -> None:
        if not isinstance(path, str | bytes):  # a descriptor, which is open already
            return
        path = normal(join(cwd(), decode(path)))
        if path in devices:
            return
        if flags & writing:
            raise denied("writing", path)
        if path in files or path.startswith(folders):
            return
        try:
            stat(path)
        except OSError:
            return  # nothing there: the caller shall hear just that
        raise denied("reading outside of the bundle and its data", path)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            check_open(arguments[0], arguments[2])
        elif event == "os.kill":
            if arguments[0] != pid:
                raise denied("signals to other processes")
        elif event in refused or (event.startswith("socket.") and event not in harmless):
            raise denied(event)

    sys.addaudithook(hook)
