"""Grades one bundle, or many side by side: unpack, run each part, score."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from homework.utils.errors import InputError
from homework.utils.parallel import cancel_on_error, interruptible_as_completed
from homework.utils.progress import progress_bar

from .redact import Truth, write_asked
from .runner import TOKENIZER, PartError, is_stopped, run_part, stop_all
from .score import Part, score
from .unpack import unpacked


@dataclass(frozen=True)
class Grade:
    """What came of one bundle: its parts, or why it was refused before anything of it ran."""

    bundle: Path
    parts: Sequence[Part] = ()
    refused: str = ""

    @property
    def is_scored(self) -> bool:
        """Whether every part has a score."""
        return not self.refused and all(part.result is not None for part in self.parts)

    @property
    def total(self) -> float:
        """Points of all parts with their extra credit."""
        return sum(part.points + part.extra for part in self.parts)


def bundles_in(path: Path) -> list[Path] | None:
    """The zips of a folder of bundles; None for a single bundle, zip or package.

    Raises:
        InputError: a folder that is neither.
    """
    if not path.is_dir() or (path / "__init__.py").exists():
        return None
    found = sorted(path.glob("*.zip"))
    if not found:
        raise InputError(path, "no zip in it, and no package either", "name ID.zip, a folder of such, or the package")
    return found


class Grader:
    """Grades bundles against one truth. `show_progress` shows the seconds of each part, for one bundle at a time."""

    show_progress = False

    def __init__(self, truth: Truth, timeout: float, tokenizer: str | Path | None = None):
        """The truth, the seconds a part may take, and CLIP's tokenizer."""
        self.truth, self.timeout, self.tokenizer = truth, timeout, tokenizer or TOKENIZER

    def grade(self, bundle: Path) -> Grade:
        """Run and score both parts.

        Raises:
            InputError: the bundle is refused, before anything of it runs.
        """
        with unpacked(bundle) as root:
            write_asked(self.truth, root / "data")
            return Grade(bundle, [self._part(name, rows, root) for name, rows in self.truth.items()])

    def grade_all(self, bundles: Sequence[Path], workers: int, told: Callable[[Grade], None]) -> Iterator[Grade]:
        """The grades in the order of the bundles. One that is refused, or breaks the grader, stops no other.

        Args:
            workers: how many at a time; each takes a core or more.
            told: is called with each grade as it comes.
        """

        def grade(bundle: Path) -> Grade:
            try:
                result = self.grade(bundle)
            except InputError as error:
                result = Grade(bundle, refused=f"{error.args[1]}; {error.args[2]}")
            except Exception as error:  # the next bundle is another student's
                result = Grade(bundle, refused=f"the grader failed: {type(error).__name__}: {error}")
            if not is_stopped():  # else what became of it is the grader's doing
                told(result)
            return result

        # on Ctrl-C no bundle's time limit is waited for
        with ThreadPoolExecutor(workers) as pool, cancel_on_error(pool, stop_all):
            for future in [pool.submit(grade, bundle) for bundle in bundles]:
                yield from (ended.result() for ended in interruptible_as_completed([future]))

    def _part(self, name: str, rows: list[dict], root: Path) -> Part:
        start = time.monotonic()
        try:
            with _clock(name, self.timeout, self.show_progress):
                run = run_part(name, root, self.timeout, self.tokenizer)
        except PartError as error:
            return Part(name, reason=str(error), seconds=time.monotonic() - start)
        seconds = time.monotonic() - start
        result, unanswered = score(name, rows, run.records)
        if unanswered == len(rows):
            return Part(name, reason="it answered none of the questions", seconds=seconds)
        times = {"load_seconds": run.load_seconds, "answer_seconds": run.answer_seconds, "seconds": seconds}
        return Part(name, result, unanswered=unanswered, parameters=run.parameters, **times)


@contextlib.contextmanager
def _clock(part: str, limit: float, shown: bool) -> Iterator[None]:
    """A bar of the time limit: the child that answers says nothing before it is done."""
    form = "{desc}: {n:.0f} s of at most {total:.0f} s |{bar}|"
    start, done = time.monotonic(), threading.Event()
    with progress_bar(total=limit, desc=f"{part} answers", bar_format=form, shown=shown) as progress:

        def tick() -> None:
            while not done.wait(0.5):
                progress.update(min(limit, time.monotonic() - start) - progress.n)

        thread = threading.Thread(target=tick, daemon=True)
        if not progress.disable:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if thread.is_alive():
                thread.join()
