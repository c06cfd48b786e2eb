"""Block actions by Python's audit hooks: the second line of defence behind the kernel.

Without kernel support they are the only one. They cover what goes through Python, not what goes through ctypes.
"""

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
BLOCKED_EVENTS = frozenset(
    """os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty os.killpg os.startfile subprocess.Popen pty.spawn
    signal.pthread_kill os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chmod os.chown os.lchown
    os.chflags os.utime os.setxattr os.removexattr resource.setrlimit resource.prlimit sqlite3.connect
    syslog.openlog syslog.syslog webbrowser.open urllib.Request http.client.connect pickle.find_class""".split()
)
ALLOWED_SOCKET_EVENTS = {"socket.gethostname"}


def add_audit_hook(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Make Python refuse other files, writes, processes, signals and the network, for good.

    `pickle` loads no classes either; `torch.load(weights_only=True)` needs none and still works.
    """
    folders = tuple(os.path.join(path, "") for path in readable)
    files, devices = {str(path) for path in readable}, {str(path) for path in writable}
    # local copies, since a bundle can change the modules
    stat, join, normal, cwd, decode = os.stat, os.path.join, os.path.normpath, os.getcwd, os.fsdecode
    pid, blocked, allowed, write_flags = os.getpid(), BLOCKED_EVENTS, ALLOWED_SOCKET_EVENTS, WRITE_FLAGS

    def denied(action: str, path: str | None = None) -> PermissionError:
        # with an errno, as from the kernel: libraries handle that error, and some change its filename
        return PermissionError(errno.EACCES, f"the sandbox does not allow {action}", path)

    def check_open(path, flags: int) -> None:
        if not isinstance(path, str | bytes):  # a descriptor that is already open
            return
        path = normal(join(cwd(), decode(path)))
        if path in devices:
            return
        if flags & write_flags:
            raise denied("writing", path)
        if path in files or path.startswith(folders):
            return
        try:
            stat(path)
        except OSError:
            return  # no such file: `open` itself raises that error
        raise denied("reading outside the bundle and its data", path)

    def hook(event: str, arguments: tuple) -> None:
        if event == "open":
            check_open(arguments[0], arguments[2])
        elif event == "os.kill":
            if arguments[0] != pid:
                raise denied("signals to other processes")
        elif event in blocked or (event.startswith("socket.") and event not in allowed):
            raise denied(event)

    sys.addaudithook(hook)
