"""Grade a bundle from the command line: `python3 -m grader ID.zip`, or a folder of such zips."""

import contextlib
import ctypes
import math
import signal
import sys
from pathlib import Path

from homework.labels.rows import sample_note
from homework.utils.cli import run
from homework.utils.errors import InputError, UsageError, check_min
from homework.utils.io import check_writable, write_json
from homework.utils.progress import is_quiet, progress_bar

M_ARENA_MAX = -8  # malloc.h: memory pools of glibc, else one per thread: a class of 300 left 9 MB in them


def grade(
    bundle: Path,
    /,
    *,
    data: Path = Path("data"),
    timeout: float = 60.0,
    json: Path | None = None,
    csv: Path | None = None,
    feedback: Path | None = None,
    gradescope: Path | None = None,
    grades: Path | None = None,
    regrade: bool = False,
    workers: int = 1,
    tokenizer: str | None = None,
    python: Path | None = None,
    require_sandbox: bool = False,
) -> None:
    """Grade a bundle, or every bundle of a folder, on data/valid_grader, in a sandbox.

    The grades of a folder are kept in FOLDER.grades.jsonl, each as soon as it is made: the same command resumes there.
    docs/GRADER_SECURITY.md lists what the sandbox blocks, docs/GRADING.md shows how to grade a class.

    Exit status: 0 if all parts were scored, 1 if a bundle was refused or a part has no score, 2 for a usage error.

    Example: python -m grader ID.zip --json report.json

    Args:
        bundle: the bundle ID.zip, the folder of a package, or a folder of such zips
        data: the data folder
        timeout: seconds per part, loading included
        json: write a report with every answer to this JSON file
        csv: write the points to this CSV file, one line per bundle
        feedback: write a text file for each student, without answers, to this folder
        gradescope: write the grade of one bundle to this file, as Gradescope's results.json
        grades: keep grades in this file; by default FOLDER.grades.jsonl beside a folder of bundles
        regrade: grade bundles again that the file of grades has
        workers: number of bundles graded at the same time
        tokenizer: folder or hub name of CLIP's tokenizer; TuxNano's by default
        python: the Python whose environment runs bundles, such as the course's; this one by default
        require_sandbox: exit with status 1 if this system cannot enforce every limit
    """
    if not 0 < timeout < math.inf:
        raise UsageError("--timeout", f"expected a finite number above 0, got {timeout:g}", "give the time in seconds")
    check_min(1, workers=workers)
    for path in filter(None, (json, csv, gradescope, grades)):
        check_writable(path)
    if feedback:
        check_writable(feedback, folder=True)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have none
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    # exit as on Ctrl-C, so that the worker processes and temporary folders are removed first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # imported here because it is slow: --help and usage errors answer at once
    from . import report
    from .grader import Grade, Grader, find_bundles
    from .ledger import Ledger, Reports
    from .redact import read_truth
    from .runner import check_answers_are_hidden, probe_sandbox
    from .worker import EVAL_SPLIT

    try:
        found = find_bundles(bundle)
        if gradescope and found and len(found) > 1:
            raise UsageError("--gradescope", f"{bundle.name} holds {len(found)} bundles", "give one bundle")
    except InputError as error:
        if gradescope:  # so that the student reads what is wrong with the upload
            report.write_gradescope(gradescope, report.to_json(Grade(bundle, refused="; ".join(error.args[1:]))))
        raise
    bundles = found or [bundle]
    is_class = found is not None and not gradescope
    if is_class and not grades:
        folder = bundle.resolve()
        grades = folder.parent / f"{folder.name}.grades.jsonl"
        try:
            check_writable(grades)
        except InputError as error:
            raise InputError(*error.args[:2], "name a file for the grades with --grades") from None
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
    if note := sample_note(data, EVAL_SPLIT):
        note = f" on {EVAL_SPLIT}{note}"
    ledger = Ledger(grades, {**grader.describe_conditions(), "unenforced": limits})
    known = {} if regrade else dict(ledger.graded)
    reports = Reports(ledger, bundles)

    def record(grade: Grade) -> None:
        place = known[grade.digest] if grade.is_known else ledger.append(grade.digest, report.to_json(grade))
        reports.places[grade.bundle] = place
        if feedback:
            report.write_feedback(feedback, reports[grade.bundle], note)
        if is_class and not grade.is_known and not is_quiet():
            report.print_result(reports[grade.bundle])

    try:
        results = grader.grade_all(bundles, min(workers, len(bundles)), record, known)
        for _ in progress_bar(results, is_class, total=len(bundles), desc="grading", unit="bundle"):
            pass
    finally:  # after Ctrl-C: the bundles graded so far
        if reports.places:
            if json:
                report.write_reports(json, reports) if is_class else write_json(json, next(iter(reports)))
            rows = list(map(report.make_row, reports))
            if csv:
                report.write_csv(csv, rows)
            if gradescope:
                report.write_gradescope(gradescope, next(iter(reports)))
            report.show(reports, rows, is_class, note)
    if again := sum(place in known.values() for place in reports.places.values()):
        print(f"{again} of {len(bundles)} graded before, see {grades}; --regrade grades them again", file=sys.stderr)
    sys.exit(not all(map(report.is_scored, reports)))


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    run(grade)
