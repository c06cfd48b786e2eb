"""What the machine offers, and how work that is shared out ends."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

POLL = 0.1  # seconds between two looks at what has ended


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def cancel_on_error(pool: Executor, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Where an error or Ctrl-C ends the block, the pool begins nothing that still waits; `stop` ends what runs."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise


def interruptible_as_completed(futures: Iterable[Future]) -> Iterator[Future]:
    """`concurrent.futures.as_completed`, but that Ctrl-C is heard at once.

    A signal that comes just before an endless wait begins is heard when the wait ends.
    """
    left = set(futures)
    while left:
        done, left = wait(left, POLL, FIRST_COMPLETED)
        yield from done
