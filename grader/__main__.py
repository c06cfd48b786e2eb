"""The command line: `python3 -m grader ID.zip`."""

import argparse
import math
import sys
import time
from pathlib import Path

TIMEOUT = 60.0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("a number above 0")
    return seconds


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m grader",
        description="Grade a bundle on data/valid_grader.",
        epilog="Exit status: 0 both parts were scored, 1 the bundle was refused or a part has no score, 2 usage.",
    )
    parser.add_argument("bundle", type=Path, help="the bundle ID.zip, or the folder of the package")
    parser.add_argument("--data", metavar="DIR", type=Path, default=Path("data"), help="data folder; default: ./data")
    parser.add_argument(
        "--timeout", metavar="S", type=_seconds, default=TIMEOUT, help="seconds a part, loading included; default: 60"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the report with every answer as JSON")
    parser.add_argument("--tokenizer", metavar="NAME", help="CLIP's tokenizer, folder or hub name; default: tux_nano's")
    return parser.parse_args(arguments)


def grade(options: argparse.Namespace) -> list:
    """Run and score both parts.

    Raises:
        InputError: the bundle or the data is refused, before anything runs.
    """
    from homework.data import MultiChoiceQADataset, VQADataset

    from .run import SPLIT, TOKENIZER
    from .unpack import unpacked

    datasets = {"vlm": VQADataset, "clip": MultiChoiceQADataset}
    truth = {part: list(dataset(SPLIT, options.data)) for part, dataset in datasets.items()}
    with unpacked(options.bundle, options.data) as root:
        tokenizer = options.tokenizer or TOKENIZER
        return [grade_part(part, rows, root, options.timeout, tokenizer) for part, rows in truth.items()]


def grade_part(name: str, rows: list[dict], root: Path, timeout: float, tokenizer: str | Path):
    """Run one part and score its answers, or say why there are none."""
    from .run import PartError, run_part
    from .score import Part, score

    start = time.monotonic()
    try:
        run = run_part(name, root, timeout, tokenizer)
    except PartError as error:
        return Part(name, reason=str(error), seconds=time.monotonic() - start)
    seconds = time.monotonic() - start
    result, unanswered = score(name, rows, run.pop("records"))
    if unanswered == len(rows):
        return Part(name, reason="it answered none of the questions", seconds=seconds)
    return Part(name, result, unanswered=unanswered, seconds=seconds, **run)


def main() -> None:
    """Run the command line."""
    options = parse()
    # After the arguments, since the import brings torch: help and a wrong flag answer at once.
    from homework.errors import one_line_errors, write_json

    from . import report

    with one_line_errors():
        parts = grade(options)
        print(report.text(options.bundle, parts))
        if options.json:
            write_json(options.json, report.as_json(options.bundle, parts))
    sys.exit(any(part.result is None for part in parts))


if __name__ == "__main__":
    main()
