"""What a command says while it works: bars and notes. `--quiet` drops both, but neither its result nor errors."""

import contextlib
import sys
from collections.abc import Iterable, Iterator

_quiet = False


def is_quiet() -> bool:
    """Whether bars and notes are dropped."""
    return _quiet


@contextlib.contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Without bars and notes inside of the block, if `quiet`."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    if _quiet and "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()  # while it loads weights
    try:
        yield
    finally:
        _quiet = before


def note(text: str) -> None:
    """Print a line that is not the result."""
    if not _quiet:
        print(text, flush=True)


def bar(steps: Iterable | None = None, shown: bool = True, **options):
    """A tqdm bar on stderr: what, how far, how long still, how fast.

    None where stderr is no terminal, as a log would get thousands of its lines.

    Args:
        steps: what to go through; without it, `total` says how many `update` adds up to.
        shown: false leaves it out, as `--quiet` does.
        options: tqdm's, above all `desc` and `unit`.
    """
    from tqdm import tqdm  # here, so that --help and short commands start at once

    return tqdm(steps, **{"disable": None if shown and not _quiet else True, "dynamic_ncols": True, **options})
