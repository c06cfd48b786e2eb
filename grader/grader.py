"""Grade one bundle, or many in parallel: unpack it, run each part, score the answers."""

import hashlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

from homework import data as scoring
from homework.utils.errors import InputError
from homework.utils.parallel import cancel_on_error, interruptible_as_completed

from .ledger import digest_bundle, printable_path
from .process import PartError, stop_requested, stop_workers
from .redact import Truth, digest_truth, write_redacted_data
from .runner import run_part
from .score import PartGrade, score_part
from .unpack import find_package, unpack_bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Grade:
    """Hold the grades of a bundle's parts, or the reason why the bundle was refused.

    Attributes:
        digest: SHA-256 of a bundle whose grade is final; None for folders and after failures of the grader.
        is_known: whether it was not graded, as an equal bundle has a grade.
    """

    bundle: Path
    parts: Sequence[PartGrade] = ()
    refused: str = ""
    digest: str | None = None
    is_known: bool = False

    @property
    def total(self) -> int:
        return sum(part.points for part in self.parts)


def find_bundles(path: Path) -> list[Path] | None:
    """Return the zips of a folder, sorted; None if the path is a single bundle, zip or package.

    A name may end in any case, as the course allows. Hidden files, such as macOS's `._ID.zip`, and all others are
    passed over; a warning names them.

    Raises:
        InputError: the folder holds neither zips nor one package.
    """
    if not path.is_dir() or find_package(path):
        return None
    entries = sorted(path.iterdir())
    bundles = [entry for entry in entries if entry.suffix.lower() == ".zip" and not entry.name.startswith(".")]
    if not bundles:
        raise InputError(path, "holds neither a zip nor one package", "give ID.zip, a folder of zips, or the package")
    if ignored := [printable_path(entry.name) for entry in sorted({*entries} - {*bundles})]:
        logger.warning("not graded: %s", ", ".join(ignored))
    return bundles


@dataclass
class Grader:
    """Grade bundles against one set of right answers."""

    truth: Truth
    timeout: float  # seconds per part, loading included
    tokenizer: str | None = None  # folder or hub name
    python: str = sys.executable  # the interpreter that runs bundles

    def describe_conditions(self) -> dict:
        """Return all that a grade depends on beside its bundle, as JSON content."""
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "truth"}
        files = [*sorted(Path(__file__).parent.rglob("*.py")), Path(scoring.__file__)]
        code = b"".join(file.read_bytes() for file in files)
        return {"data": digest_truth(self.truth), "code": hashlib.sha256(code).hexdigest(), **settings}

    def grade(self, bundle: Path) -> Grade:
        """Run and score both parts.

        Raises:
            InputError: the bundle is refused; none of its code has run.
        """
        with unpack_bundle(bundle) as root:
            write_redacted_data(self.truth, root / "data")
            return Grade(bundle, [self._grade_part(name, root) for name in self.truth])

    def grade_all(
        self, bundles: Sequence[Path], workers: int, on_result: Callable[[Grade], None], known: Container[str] = ()
    ) -> Iterator[Grade]:
        """Yield grades in the order of the bundles; one that is refused or fails does not stop the others.

        Args:
            workers: number of bundles graded at the same time; each uses at least one core.
            on_result: called with each grade as soon as it is made, from several threads.
            known: digests of bundles that are not graded again.
        """

        def grade(bundle: Path) -> Grade:
            digest = None
            try:
                digest = digest_bundle(bundle)
                result = Grade(bundle, is_known=True) if digest in known else self.grade(bundle)
            except InputError as error:
                path, problem, remedy = error.args
                inside = "" if path == bundle else f"{path}: "
                result = Grade(bundle, refused=f"{inside}{problem}; {remedy}")
            except Exception as error:  # the remaining bundles are other students'
                digest = None
                result = Grade(bundle, refused=f"the grader failed: {type(error).__name__}: {error}")
            result = replace(result, digest=digest)
            if not stop_requested.is_set():  # a worker that was interrupted says nothing about its bundle
                on_result(result)
            return result

        # Ctrl-C does not wait for a bundle's time limit
        with ThreadPoolExecutor(workers) as pool, cancel_on_error(pool, stop_workers):
            futures = deque(pool.submit(grade, bundle) for bundle in bundles)
            while futures:  # none is kept: it holds every answer
                yield from (done.result() for done in interruptible_as_completed([futures.popleft()]))

    def _grade_part(self, name: str, root: Path) -> PartGrade:
        start = time.monotonic()
        try:
            run = run_part(name, root, self.timeout, self.tokenizer, self.python)
        except PartError as error:
            return PartGrade(name, reason=str(error), seconds=time.monotonic() - start)
        seconds = time.monotonic() - start
        result, unanswered = score_part(name, self.truth[name], run.records)
        if unanswered == len(self.truth[name]):
            return PartGrade(name, reason="it answered none of the questions", seconds=seconds)
        return PartGrade(
            name, result, "", unanswered, run.num_parameters, run.load_seconds, run.answer_seconds, seconds
        )
