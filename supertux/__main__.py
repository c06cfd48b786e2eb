"""`python -m supertux download`, `use-sample`, `install-art`, `render`, `make-sample`."""

from homework.cli import run

from .art import install_art
from .download import download
from .render import render
from .sample import make_sample, use_sample

run(download, use_sample, install_art, render, make_sample)
