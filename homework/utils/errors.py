"""Report errors that a user can act on: one line with the file, the problem and the remedy."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

MAX_SEED = 2**32  # exclusive: NumPy takes no larger seed
INTERRUPTED = "interrupted: finished files are kept; run the same command again to resume"


class InputError(ValueError):
    """Bad input. `str(error)` is one line: the file, what is wrong with it, what to do."""

    status = 1

    def __init__(self, path: str | Path, problem: str, remedy: str):
        super().__init__(path, problem, remedy)  # all three in `args`, so that the error can be pickled by a worker

    def __str__(self) -> str:
        return make_printable("{}: {}; {}".format(*self.args))


class UsageError(InputError):
    """Invalid value of a flag."""

    status = 2


def check_min(minimum: float, **flags: float | None) -> None:
    """Check that numeric flags are at least `minimum` and below `MAX_SEED`; None stands for the default."""
    for name, value in flags.items():
        if value is not None and not minimum <= value < MAX_SEED:
            given = f"{value:,}" if isinstance(value, int) else f"{value:g}"
            problem = f"expected {minimum:g} or more and less than {MAX_SEED:,}, got {given}"
            raise UsageError(f"--{name.replace('_', '-')}", problem, "choose a value in this range")


def make_printable(text: str, limit: int | None = None) -> str:
    """Return one line of up to `limit` characters: control characters, line breaks and bidi marks are escaped.

    File names may hold them. Whatever is left can be encoded as UTF-8.
    """
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:limit])
    return line if limit is None or len(text) <= limit >= len(line) else f"{line[:limit]}..."


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message (up to 200 characters), or its type if empty."""
    if "weights_only" in str(error):  # torch advises to load the file all the same, which would run code in it
        return "it holds more than weights"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def suggest_name(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy for an unknown name: the closest known one, and `otherwise` what else to do."""
    nearest = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {nearest[0]}? If not, {otherwise}" if nearest else otherwise


def folder_not_found(folder: Path, problem: str, otherwise: str) -> InputError:
    """Make the error for a missing folder; its remedy suggests the sibling with the closest name."""
    siblings = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    return InputError(folder, problem, suggest_name(folder.name, siblings, otherwise))


def split_not_found(folder: Path) -> InputError:
    """Make the error for a missing split."""
    return folder_not_found(folder, "no such split", "run `python -m supertux download`")


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn an `InputError`, a failed write or Ctrl-C inside a command into one line and an exit status.

    Raises:
        SystemExit: 1 for bad input or a failed write, 2 for an invalid flag, 130 after Ctrl-C, 141 if the reader of
            stdout has closed it.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter still flushes stdout
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        name = f"{make_printable(str(error.filename))}: " if error.filename else ""
        sys.exit(f"error: {name}{error.strerror}; check the path, its permissions and the free space, then run again")
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        raise SystemExit(130) from None
