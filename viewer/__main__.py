"""Inspect models and their data: `python -m viewer --help`."""

from homework.utils.cli import run

from .explorer.cli import explore
from .report.cli import report

run(report, explore)
