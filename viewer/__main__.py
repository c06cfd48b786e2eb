"""Looking at the models: `python -m viewer --help`."""

from homework.cli import run

from .explore import explore
from .report import report

run(report, explore)
