"""`python -m supertux download`."""

from homework.cli import run

from .download import download

run(download)
