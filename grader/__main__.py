"""The command line: `python3 -m grader ID.zip`, or a folder of such zips."""

import logging
import math
import signal
import sys
import time
from pathlib import Path

from homework.utils.cli import run
from homework.utils.errors import InputError, UsageError
from homework.utils.io import check_writable, write_json
from homework.utils.progress import is_quiet, progress_bar

logger = logging.getLogger(__name__)

TIMEOUT = 60.0


def announce_limits(required: bool) -> None:
    """Say on stderr which limits this system does not enforce.

    Raises:
        InputError: there are such, and all are required.
    """
    from .runner import PartError, not_enforced

    try:
        missing = not_enforced()
    except PartError as error:
        raise InputError("this system", str(error), "grade on another") from None
    for line in missing:
        print(f"not enforced: {line}", file=sys.stderr)
    if missing and required:
        problem = f"{len(missing)} of the limits can't be enforced"
        raise InputError("this system", problem, "grade on another, or leave --require-sandbox out")


def grade(
    bundle: Path,
    /,
    *,
    data: Path = Path("data"),
    timeout: float = TIMEOUT,
    json: Path | None = None,
    csv: Path | None = None,
    workers: int = 1,
    tokenizer: str | None = None,
    require_sandbox: bool = False,
) -> None:
    """Grade a bundle, or a folder of them, on data/valid_grader. docs/GRADER_SECURITY.md: what it shuts off.

    Exit status: 0 all parts were scored, 1 a bundle was refused or a part has no score, 2 usage.

    Example: python -m grader ID.zip --json report.json

    Args:
        bundle: the bundle ID.zip, or the folder of the package, or a folder of such zips
        data: the data folder
        timeout: seconds a part, loading included
        json: write the report with every answer as JSON
        csv: write the points, a line a bundle
        workers: bundles at the same time
        tokenizer: CLIP's, folder or hub name; without it, tux_nano's
        require_sandbox: refuse to run where this system can't enforce every limit
    """
    if not 0 < timeout < math.inf:
        raise UsageError("--timeout", f"{timeout:g} seconds", "give a number above 0")
    if workers < 1:
        raise UsageError("--workers", f"{workers} bundles at the same time", "give 1 or more")
    for path in filter(None, (json, csv)):
        check_writable(path)
    # as Ctrl-C: the bundles' processes and temporary folders go first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # here, since the import takes a while: help and a wrong flag answer at once
    from . import report
    from .grader import Grade, Grader, bundles_in
    from .redact import read_truth

    def write(content: dict | list, grades: list[Grade]) -> None:
        if json:
            write_json(json, content)
        if csv:
            report.write_csv(csv, grades)

    bundles = bundles_in(bundle)
    grader = Grader(read_truth(data), timeout, tokenizer)
    grader.show_progress = bundles is None
    announce_limits(require_sandbox)
    start = time.monotonic()
    if bundles is None:
        grades = [grader.grade(bundle)]
        print(report.text(grades[0]))
        write(report.as_json(grades[0]), grades)
    else:
        told = (lambda _: None) if is_quiet() else report.print_progress
        graded = grader.grade_all(bundles, min(workers, len(bundles)), told)
        grades = []
        try:
            grades.extend(progress_bar(graded, total=len(bundles), desc="grading", unit="bundle"))
        finally:  # on Ctrl-C of those that are done
            if grades:
                print(report.table(grades))
                logger.info(f"{len(grades)} bundles in {time.monotonic() - start:.0f} s")
                write([report.as_json(one) for one in grades], grades)
    sys.exit(not all(one.is_scored for one in grades))


if __name__ == "__main__":
    run(grade)
