"""Functions become commands, and errors one line."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homework.utils.errors import InputError
from homework.utils.io import atomic_write, read_json, write_json
from tests.conftest import assert_one_line_error, heed_ctrl_c

ROOT = Path(__file__).parents[3]


def greet(name: str, /, *, times: int, sender: str = "me", loud_voice: bool = False) -> None:
    """Say hello.

    Args:
        name: whom to greet
        times: how often
        sender: who greets
    """
    print(f"hello {name} from {sender}{'!' * loud_voice} " * times)


def broken() -> None:
    """Raise an InputError."""
    raise InputError("some/file", "is broken", "mend it")


def full() -> None:
    """Raise the error of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")


def interrupted() -> None:
    """Raise the exception of Ctrl-C."""
    raise KeyboardInterrupt


def mistaken() -> None:
    """Import a module that this repository lacks."""
    import homework.nothing  # noqa: F401


def unequipped() -> None:
    """Import a package that is not installed."""
    import no_such_package.part  # noqa: F401


COMMANDS = (greet, broken, full, interrupted, mistaken, unequipped)


def test_arguments_and_flags(call):
    assert call(COMMANDS, "greet", "tux", "--times", 2)[1] == "hello tux from me hello tux from me \n"
    assert call(COMMANDS, "greet", "tux", "--times", 1, "--sender", "gnu")[1] == "hello tux from gnu \n"
    for flag in ("--loud_voice", "--loud-voice"):
        assert call(COMMANDS, "greet", "tux", "--times", 1, flag)[1] == "hello tux from me! \n"


def test_a_keyword_only_parameter_without_a_default_is_a_required_flag(call):
    status, _, err = call(COMMANDS, "greet", "tux")
    assert status == 2 and "--times" in err


def test_help_comes_from_the_docstring(call):
    status, out, _ = call(COMMANDS, "greet", "--help")
    assert status == 0
    for text in ("Say hello.", "whom to greet", "how often", "--sender", "who greets"):
        assert text in out
    assert "Args:" not in out


def test_a_mistyped_flag_leads_to_the_command_that_was_typed():
    """Only to flags of that command, and to its help by the name that a shell knows."""
    command = [sys.executable, "-m", "homework.finetune", "train", "--splitt", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--split STR" in done.stderr
    assert "run python -m homework.finetune train --help" in done.stderr
    assert "python train" not in done.stderr and "evaluate on" not in done.stderr  # as `test --split` does


def test_errors_are_one_line(call):
    assert_one_line_error(call(COMMANDS, "broken"), "some/file: is broken; mend it")
    assert_one_line_error(call(COMMANDS, "full"), "some/file: No space left on device")


def test_a_missing_package_is_one_line_and_a_missing_module_of_ours_is_not(call):
    """The latter is a mistake in the code, which a traceback finds."""
    remedy = "run `make venv`, then `source .venv/bin/activate`"
    assert_one_line_error(call(COMMANDS, "unequipped"), f"this Python: lacks the package no_such_package; {remedy}")
    with pytest.raises(ModuleNotFoundError, match="homework.nothing"):
        call(COMMANDS, "mistaken")


def test_ctrl_c_is_one_line(call):
    status, _, err = call(COMMANDS, "interrupted")
    assert status == 130 and err == "interrupted\n" and "Traceback" not in err


def test_files_are_written_atomically(tmp_path: Path):
    path = tmp_path / "new" / "file.json"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, [object()])
    assert read_json(path) == [1] and list(path.parent.iterdir()) == [path]


def test_invalid_json_is_one_line_that_names_the_file(tmp_path: Path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for name in ("bytes.json", "deep.json", "missing.json"):
        with pytest.raises(InputError) as error:
            read_json(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_closed_stdout_is_not_an_error():
    """As in `... | head -1`: the command ends without a message."""
    script = "from homework.utils.cli import run\ndef count():\n    for i in range(100000): print(i)\nrun(count)"
    command = f"{sys.executable} -c '{script}' | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "0\n" and done.stderr == ""


def test_writing_to_a_folder_names_it(tmp_path: Path):
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path))}: is a folder"), atomic_write(tmp_path):
        raise AssertionError("nothing is to be written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("delay_seconds", [0, 0.3])
@pytest.mark.parametrize("command", ["homework.finetune test homework/weights/vlm", "viewer.error_analysis vlm"])
def test_ctrl_c_while_a_command_starts_gives_no_traceback(sample_data, command, delay_seconds):
    """Slow libraries are imported inside commands; `-X importtime` shows when that begins."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *command.split(), "--data", sample_data],
        **{"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed_ctrl_c},
    )
    assert any(line.split("|")[-1].strip().startswith("torch.") for line in process.stderr)
    time.sleep(delay_seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted\n" in err and "Traceback" not in err


def test_ctrl_c_in_an_import_that_ignores_errors(tmp_path):
    """As torch's import of numpy does; after the import Ctrl-C raises KeyboardInterrupt as usual."""
    (tmp_path / "slow.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    for statement, expected in (("import slow", ""), ("signal.raise_signal(signal.SIGINT)", "cleanup\n")):
        script = f"""
import signal
from homework.utils.cli import run

def main():
    try:
        {statement}
    except KeyboardInterrupt:
        print("cleanup")
        raise

run(main)
"""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
        done = subprocess.run(
            [sys.executable, "-c", script],
            **{"env": environment, "capture_output": True, "text": True, "preexec_fn": heed_ctrl_c},
        )
        assert (done.returncode, done.stdout) == (130, expected), done.stderr
        assert done.stderr == "interrupted\n"
