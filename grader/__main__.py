"""The command line: `python3 -m grader ID.zip`, or a folder of such zips."""

import argparse
import math
import signal
import sys
import time
from pathlib import Path

TIMEOUT = 60.0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("a number above 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a whole number above 0")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m grader",
        description="Grade a bundle, or a folder of them, on data/valid_grader. docs/SECURITY.md: what it shuts off.",
        epilog="Exit status: 0 all parts were scored, 1 a bundle was refused or a part has no score, 2 usage.",
    )
    parser.add_argument(
        "bundle", type=Path, help="the bundle ID.zip, or the folder of the package, or a folder of such zips"
    )
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path("data"), help="data folder; default: ./data")
    parser.add_argument(
        "--timeout", metavar="S", type=_seconds, default=TIMEOUT, help="seconds a part, loading included; default: 60"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report with every answer as JSON")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the points, a line a bundle")
    parser.add_argument("--workers", metavar="N", type=_count, default=1, help="bundles at the same time; default: 1")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer, folder or hub name; default: tux_nano's")
    parser.add_argument(
        "--require-sandbox", action="store_true", help="refuse to run where this system can't enforce every limit"
    )
    return parser.parse_args(arguments)


def announce_limits(required: bool) -> None:
    """Say on stderr which limits this system does not enforce.

    Raises:
        InputError: there are such, and all are required.
    """
    from homework.errors import InputError

    from .run import PartError, not_enforced

    try:
        missing = not_enforced()
    except PartError as error:
        raise InputError("this system", str(error), "grade on another") from None
    for line in missing:
        print(f"not enforced: {line}", file=sys.stderr)
    if missing and required:
        problem = f"{len(missing)} of the limits can't be enforced"
        raise InputError("this system", problem, "grade on another, or leave --require-sandbox out")


def main() -> None:
    """Run the command line."""
    options = parse()
    # as Ctrl-C: the bundles' processes and temporary folders go first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # After the arguments, since the import takes a while: help and a wrong flag answer at once.
    from homework.errors import one_line_errors, write_json

    from . import report
    from .asked import read_truth
    from .grade import Grader, bundles_in

    with one_line_errors():
        bundles = bundles_in(options.bundle)
        grader = Grader(read_truth(options.data), options.timeout, options.tokenizer)
        announce_limits(options.require_sandbox)
        start = time.monotonic()
        if bundles is None:
            grades = [grader.grade(options.bundle)]
            print(report.text(grades[0]))
            content = report.as_json(grades[0])
        else:
            grades = list(grader.grade_all(bundles, min(options.workers, len(bundles)), report.print_progress))
            print(report.table(grades))
            print(f"{len(grades)} bundles in {time.monotonic() - start:.0f} s")
            content = [report.as_json(grade) for grade in grades]
        if options.json:
            write_json(options.json, content)
        if options.csv:
            report.write_csv(options.csv, grades)
    sys.exit(not all(grade.is_scored for grade in grades))


if __name__ == "__main__":
    main()
