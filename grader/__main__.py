"""Grade a bundle from the command line: `python3 -m grader ID.zip`, or a folder of such zips."""

import math
import signal
import sys
from pathlib import Path

from homework.utils.cli import run
from homework.utils.errors import InputError, UsageError, check_min
from homework.utils.io import check_writable, write_json
from homework.utils.progress import is_quiet, progress_bar


def grade(
    bundle: Path,
    /,
    *,
    data: Path = Path("data"),
    timeout: float = 60.0,
    json: Path | None = None,
    csv: Path | None = None,
    workers: int = 1,
    tokenizer: str | None = None,
    python: Path | None = None,
    require_sandbox: bool = False,
) -> None:
    """Grade a bundle, or every bundle of a folder, on data/valid_grader, in a sandbox.

    docs/GRADER_SECURITY.md lists what the sandbox blocks.

    Exit status: 0 if all parts were scored, 1 if a bundle was refused or a part has no score, 2 for a usage error.

    Example: python -m grader ID.zip --json report.json

    Args:
        bundle: the bundle ID.zip, the folder of a package, or a folder of such zips
        data: the data folder
        timeout: seconds per part, loading included
        json: write a report with every answer to this JSON file
        csv: write the points to this CSV file, one line per bundle
        workers: number of bundles graded at the same time
        tokenizer: folder or hub name of CLIP's tokenizer; TuxNano's by default
        python: the Python whose environment runs bundles, such as the course's; this one by default
        require_sandbox: exit with status 1 if this system cannot enforce every limit
    """
    if not 0 < timeout < math.inf:
        raise UsageError("--timeout", f"expected a finite number above 0, got {timeout:g}", "give the time in seconds")
    check_min(1, workers=workers)
    for path in filter(None, (json, csv)):
        check_writable(path)
    # exit as on Ctrl-C, so that the worker processes and temporary folders are removed first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # imported here because it is slow: --help and usage errors answer at once
    from . import report
    from .grader import Grader, find_bundles
    from .redact import read_truth
    from .runner import check_answers_are_hidden, probe_sandbox

    bundles = find_bundles(bundle)
    interpreter = str(python or sys.executable)
    grader = Grader(read_truth(data), timeout, tokenizer, interpreter)
    sandbox = probe_sandbox(interpreter, tokenizer)
    check_answers_are_hidden(sandbox, data)
    print(sandbox.describe(), file=sys.stderr)
    limits = sandbox.unenforced
    for limit in limits:
        print(f"not enforced: {limit}", file=sys.stderr)
    if limits and require_sandbox:
        problem = f"cannot enforce {len(limits)} of the sandbox's limits"
        raise InputError("this system", problem, "grade on another system, or omit --require-sandbox")
    grades = []
    try:
        if bundles is None:
            grades.append(grader.grade(bundle))
        else:
            on_result = (lambda _: None) if is_quiet() else report.print_result
            results = grader.grade_all(bundles, min(workers, len(bundles)), on_result)
            grades.extend(progress_bar(results, total=len(bundles), desc="grading", unit="bundle"))
    finally:  # after Ctrl-C: the bundles graded so far
        if grades:
            print(report.format_grade(grades[0]) if bundles is None else report.format_table(grades))
            entries = [report.to_json(one) for one in grades]
            if json:
                write_json(json, entries[0] if bundles is None else entries)
            if csv:
                report.write_csv(csv, grades)
    sys.exit(not all(one.is_scored for one in grades))


if __name__ == "__main__":
    run(grade)
