"""Show progress bars and messages. `--quiet` hides both, but not results and errors."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator

_quiet = False


class _StdoutHandler(logging.Handler):
    """Print messages without prefix, above a progress bar, to the current `sys.stdout`, which notebooks replace."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" in sys.modules:
            sys.modules["tqdm"].tqdm.write(self.format(record), file=sys.stdout)
        else:
            print(self.format(record), file=sys.stdout)
        sys.stdout.flush()


_HANDLER = _StdoutHandler()


def is_quiet() -> bool:
    """Return whether progress bars and messages are hidden."""
    return _quiet


def show_messages(packages: Iterable[str]) -> None:
    """Print messages of level INFO and above from the loggers of these packages only."""
    for package in packages:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


@contextlib.contextmanager
def suppress_output(quiet: bool = True) -> Iterator[None]:
    """Hide progress bars and messages inside the block if `quiet`."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    _HANDLER.setLevel(logging.WARNING if _quiet else logging.NOTSET)
    if _quiet and "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()  # shown while it loads weights
    try:
        yield
    finally:
        _quiet = before
        _HANDLER.setLevel(logging.WARNING if _quiet else logging.NOTSET)


def progress_bar(steps: Iterable | None = None, shown: bool = True, **options):
    """Return a tqdm bar on stderr, hidden if stderr is not a terminal to keep logs short.

    Args:
        steps: what to iterate over; without it, `total` is the sum of all calls of `update`.
        shown: whether to show it at all; `--quiet` hides it too.
        options: tqdm's, usually `desc` and `unit`.
    """
    from tqdm import tqdm  # deferred, so that --help and short commands start at once

    return tqdm(steps, **{"disable": None if shown and not _quiet else True, "dynamic_ncols": True, **options})
