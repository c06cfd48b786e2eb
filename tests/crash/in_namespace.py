"""Run a command on a full and on a read-only disk: `python -m tests.crash.in_namespace CASE FOLDER`.

`test_full_disk` starts this in a mount namespace of its own. FOLDER/disk becomes a small tmpfs, filled but for a few
kilobytes. The command runs there, runs again after space is freed, and runs once more on a read-only mount.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from . import kill
from .commands import COMMANDS, Command

MEGABYTE = 1 << 20
# MB of the disk, KB left on it when the command runs
DISK_SIZES = {"generate": (24, 8), "bundle": (40, 100), "download": (24, 600), "views": (24, 20), "train": (60, 600)}


class Views(COMMANDS["generate"]):
    """Call `load_views` with its cache on the disk: on a full disk only the cache is lost."""

    name = "views"

    def line(self, folder: Path) -> list[str]:
        text = "import sys; from pathlib import Path; from homework.models.images import load_views as l; f = Path("
        text += "sys.argv[1]); v = l(sorted(f.glob('train/*.jpg'))[:32], f / '.cache'); print(v.shape, v.mean())"
        return [sys.executable, "-c", text, str(folder)]

    def result(self, folder: Path) -> list[str]:
        return [file.name for file in (folder / ".cache").glob("*.npy")]


class Train(COMMANDS["train"]):
    """Run the training in a process of its own."""

    work = None

    def line(self, folder: Path) -> list[str]:
        text = "import sys; from pathlib import Path; from tests.crash.commands import Train as T; t = T.__new__(T)"
        text += "; t.shared = Path(sys.argv[1]); t.work(Path(sys.argv[2]))"
        return [sys.executable, "-c", text, str(self.shared), str(folder)]


def run(command: Command, folder: Path) -> tuple[int, str]:
    """Run the command; return its exit status and stderr."""
    done = subprocess.run(command.line(folder), capture_output=True, text=True, timeout=600)
    return done.returncode, done.stderr


def files(folder: Path) -> dict[Path, bytes]:
    """Read every file under a final name."""
    paths = (path for path in folder.rglob("*") if path.is_file() and kill.is_final(path.relative_to(folder)))
    return {path: path.read_bytes() for path in paths}


def fill(disk: Path, left: int) -> Path:
    """Write a file that takes all space but `left` bytes."""
    ballast = disk / ".ballast"
    with open(ballast, "wb") as stream:
        stream.write(bytes(max(0, shutil.disk_usage(disk).free - left)))
    return ballast


def assert_one_line(status: int, err: str, name: str) -> None:
    """Expect exit status 1 and one line that names a file on the disk."""
    lines = re.findall(r"error: .*", err)  # a progress bar may stand before it
    assert status == 1 and len(lines) == 1 and "Traceback" not in err, (status, err[-3000:])
    assert name in lines[0], lines[0]


def assert_nothing_lost(before: dict[Path, bytes], folder: Path) -> None:
    """Expect all earlier files unchanged and no incomplete new one."""
    incomplete = list(kill.incomplete_files(folder))
    assert not incomplete, incomplete
    after = files(folder)
    for path, content in before.items():
        if "events.out" not in path.name:
            assert after.get(path) == content, f"{path} is lost or changed"


def check(command: Command, disk: Path, shared: Path) -> list[str]:
    """Run the three checks; return their names."""
    folder = disk / "folder"
    command.prepare(folder)
    if command.name != "train":  # the result of an earlier run, which must survive
        status, err = run(command, folder)
        assert status == 0, err
    if command.name == "views":
        shutil.rmtree(folder / ".cache")
    if command.name == "download":  # lacks the zip and a part of the files
        shutil.rmtree(folder / "data/valid")
        (folder / "data/data.zip").unlink()
    before = files(folder)
    ballast = fill(disk, DISK_SIZES[command.name][1] << 10)
    status, err = run(command, folder)
    if command.name == "views":
        assert status == 0 and not err and not list((folder / ".cache").glob("*.npy")), err
    else:
        assert_one_line(status, err, str(folder))
    assert_nothing_lost(before, folder)
    ballast.unlink()
    status, err = run(command, folder)
    assert status == 0, err[-3000:]
    assert not list(kill.incomplete_files(folder)) and command.result(folder)
    before = files(folder)
    if command.name == "views":
        shutil.rmtree(folder / ".cache")
        before = files(folder)
    if command.name == "download":
        (folder / "data/valid_grader/all_mc_qas.json").unlink()
        before = files(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    status, err = run(command, folder)
    if command.name == "views":
        assert status == 0 and not err, err
    else:
        assert_one_line(status, err, str(folder))
    assert_nothing_lost(before, folder)
    return ["full", "freed", "read-only"]


def main() -> None:
    """Mount the disk, run the checks, and print their names as JSON."""
    case, place = sys.argv[1], Path(sys.argv[2])
    shared, disk = place / "shared", place / "disk"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZES[case][0]}m", "none", str(disk)], check=True)
    sys.stdout, stdout = io.StringIO(), sys.stdout
    command = ({"views": Views, "train": Train} | {n: c for n, c in COMMANDS.items() if n != "train"})[case](shared)
    try:
        checked = check(command, disk, shared)
    finally:
        command.close()
    print(json.dumps({"case": case, "checked": checked}), file=stdout)
    stdout.flush()
    os._exit(0)  # server threads may wait for a client that has exited


if __name__ == "__main__":
    main()
