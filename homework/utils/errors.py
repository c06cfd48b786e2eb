"""Errors that a user can act on: one line that names the file and the remedy."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_SEED = 2**32  # NumPy takes no larger seed


class InputError(ValueError):
    """Bad input. `str(error)` is one line: the file, what is wrong with it, what to do."""

    status = 1

    def __init__(self, path: str | Path, problem: str, remedy: str):
        super().__init__(path, problem, remedy)  # all three in `args`, so that a worker process can pass it on

    def __str__(self) -> str:
        # a file's name may hold a line break
        return "{}: {}; {}".format(*self.args).replace("\n", "\\n").replace("\r", "\\r")


class UsageError(InputError):
    """A flag's value that can't be."""

    status = 2


def check_min(least: float, **flags: float | None) -> None:
    """Check numbers that are given as flags; None stands for the default.

    Raises:
        UsageError: one of them is less, larger than libraries take a seed, or no number.
    """
    for name, value in flags.items():
        if value is not None and not least <= value < MAX_SEED:
            problem = f"{value:,}" if isinstance(value, int) else f"{value:g}"
            raise UsageError(f"--{name.replace('_', '-')}", problem, f"give {least:g} or more, under {MAX_SEED:,}")


def first_line(error: Exception) -> str:
    """What a library's error says, for a message of one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def suggest_name(name: str, known: Iterable[str], otherwise: str) -> str:
    """A remedy for a name that is not known: the nearest known one, else something else to do."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {nearest[0]}? Else {otherwise}" if nearest else otherwise


def folder_not_found(folder: Path, problem: str, otherwise: str) -> InputError:
    """The error for a folder that is not there: it names the nearest one beside it, or something else to do."""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    return InputError(folder, problem, suggest_name(folder.name, beside, otherwise))


def split_not_found(folder: Path, problem: str) -> InputError:
    """The error for a split's folder that is not there."""
    return folder_not_found(folder, problem, "run `python -m supertux download`")


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn an `InputError`, a full disk or Ctrl-C inside a command into one line and an exit status.

    Raises:
        SystemExit: 1 for bad input or a failed write, 2 for a flag's value that can't be, 130 for an interrupted run,
            141 where nobody reads on.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except BrokenPipeError:  # whoever reads the output has had enough, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        name = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {name}{error.strerror}; check the path, its permissions and the free space, then run again")
    except KeyboardInterrupt:
        print("interrupted: finished files are kept; run the same command again", file=sys.stderr)
        raise SystemExit(130) from None
