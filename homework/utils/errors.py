"""Report errors that a user can act on: one line with the file, the problem and the remedy."""

import contextlib
import difflib
import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

MAX_SEED = 2**32  # exclusive: NumPy takes no larger seed
COURSE_SPLITS = ("train", "train_demo", "valid", "valid_grader")
MAX_SUGGESTIONS = 3
RUN_SUFFIX = "-run"  # of the folder with a run's checkpoints and logs, beside its adapter: not to be suggested
MIN_SIMILARITY = 0.6  # of a suggested name, as `difflib` measures it: 0 to 1


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
    """Return the first line of an exception's message, or its type if empty; whole words of up to 200 characters."""
    if "weights_only" in str(error):  # torch advises to load the file all the same, which would run code in it
        return "it holds more than weights"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    short = textwrap.shorten(line, 200, placeholder=" ...", break_on_hyphens=False)
    return line if short == "..." else short  # one long word, e.g. a path


def suggest_name(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a remedy for an unknown name: the closest known one, and `otherwise` what else to do."""
    nearest = _rank_names(name, known)
    return f"did you mean {nearest[0]}? If not, {otherwise}" if nearest else otherwise


def _rank_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the names that are similar to `name`, the closest first; of equally close ones, those that begin alike."""
    matcher, ranked = difflib.SequenceMatcher(b=name), []
    for other in known:
        matcher.set_seq1(other)
        if matcher.quick_ratio() >= MIN_SIMILARITY and (similarity := matcher.ratio()) >= MIN_SIMILARITY:
            ranked.append((-similarity, -len(os.path.commonprefix((name, other))), other))
    return [other for *_, other in sorted(ranked)]


def folder_not_found(folder: Path, problem: str, otherwise: str) -> InputError:
    """Make the error for a missing folder; its remedy suggests the sibling with the closest name."""
    if folder.is_file():
        return InputError(folder, "is a file, expected a folder", f"if the file belongs to it, name {folder.parent}")
    others = [path for path in folder.parent.iterdir() if path != folder] if folder.parent.is_dir() else []
    siblings = [path.name for path in others if path.is_dir() and not path.name.endswith(RUN_SUFFIX)]
    return InputError(folder, problem, suggest_name(folder.name, siblings, otherwise))


def split_not_found(folder: Path) -> InputError:
    """Make the error for a missing split: where the data comes from, or which splits there are."""
    data = folder.parent
    splits = sorted(path.name for path in data.glob("[!.]*") if path.is_dir())
    if folder.name in COURSE_SPLITS or not splits:
        return folder_not_found(folder, "no such split", _get_data(data))
    return folder_not_found(folder, "no such split", f"choose one of {', '.join(splits)}")


def file_not_found(path: str | Path, problem: str = "no such file", otherwise: str = "check the path") -> InputError:
    """Make the error for a missing file.

    Its remedy suggests files with similar names in its folder, or says where the data comes from if a split is missing.
    """
    path = Path(path)
    if path.is_dir():
        return InputError(path, "is a folder, expected a file", "name a file in it")
    if path.parent.is_dir():
        names = (name for name in os.listdir(path.parent) if name.endswith(path.suffix))
        nearest = _rank_names(path.name, names)[:MAX_SUGGESTIONS]
        return InputError(path, problem, f"did you mean {' or '.join(nearest)}?" if nearest else otherwise)
    return InputError(path, problem, _get_data(path.parents[1]) if path.parent.name in COURSE_SPLITS else otherwise)


def data_flag(data: Path) -> str:
    """Return what a command in a remedy needs to work on this data folder: a blank and the flag, or nothing."""
    return "" if data.absolute() == Path("data").absolute() else f" --data {data}"


def _get_data(data: Path) -> str:
    """Return the two ways to fill a data folder."""
    flag = data_flag(data)
    return f"run `python -m supertux use-sample{flag}` (2 s) or `python -m supertux download{flag}` (464 MB)"


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C in the block that the same command resumes; without this, nothing is said to be kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished files are kept; run the same command again to resume") from None


@contextlib.contextmanager
def cli_errors() -> Iterator[None]:
    """Turn an `InputError`, a missing package, a failed write or Ctrl-C in a command into one line and an exit status.

    Raises:
        SystemExit: 1 for bad input, a missing package or a failed write, 2 for an invalid flag, 130 after Ctrl-C, 141
            if the reader of stdout has closed it.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or find_spec(package):  # installed: a module of it is missing, which is a mistake in the code
            raise
        remedy = "run `make venv`, then `source .venv/bin/activate`"
        sys.exit(f"error: {InputError('this Python', f'lacks the package {package}', remedy)}")
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter still flushes stdout
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        name = f"{make_printable(str(error.filename))}: " if error.filename else ""
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            found, expected = ("folder", "file") if isinstance(error, IsADirectoryError) else ("file", "folder")
            sys.exit(f"error: {name}is a {found}, expected a {expected}; move it away or choose another path")
        sys.exit(f"error: {name}{error.strerror}; check the path, its permissions and the free space, then run again")
    except KeyboardInterrupt as error:  # its argument, if it has one, says what is kept
        print(": ".join(("interrupted", *map(str, error.args))), file=sys.stderr)
        raise SystemExit(130) from None
