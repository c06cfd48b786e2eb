"""Progress bars and messages. `--quiet` hides both, but neither results nor errors."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator

_quiet = False


class _StdoutHandler(logging.Handler):
    """Print messages bare, to whatever `sys.stdout` is when they come: tests and notebooks replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stdout, flush=True)


_HANDLER = _StdoutHandler()


def is_quiet() -> bool:
    """Return whether progress bars and messages are hidden."""
    return _quiet


def show_messages(packages: Iterable[str]) -> None:
    """Print what the loggers of these packages say from level INFO on; those of libraries stay as they are."""
    for package in packages:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


@contextlib.contextmanager
def suppress_output(quiet: bool = True) -> Iterator[None]:
    """Hide progress bars and messages inside the block, if `quiet`."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    _HANDLER.setLevel(logging.WARNING if _quiet else logging.NOTSET)
    if _quiet and "transformers" in sys.modules:
        sys.modules["transformers"].utils.logging.disable_progress_bar()  # while it loads weights
    try:
        yield
    finally:
        _quiet = before
        _HANDLER.setLevel(logging.WARNING if _quiet else logging.NOTSET)


def progress_bar(steps: Iterable | None = None, shown: bool = True, **options):
    """Return a tqdm bar on stderr; hidden where stderr is not a terminal, lest a log get thousands of lines.

    Args:
        steps: what to iterate over; without it, `total` says how much the calls of `update` add up to.
        shown: whether to show it at all; `--quiet` hides it too.
        options: tqdm's, above all `desc` and `unit`.
    """
    from tqdm import tqdm  # here, so that --help and short commands start at once

    return tqdm(steps, **{"disable": None if shown and not _quiet else True, "dynamic_ncols": True, **options})
