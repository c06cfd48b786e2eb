"""`python -m supertux download`, `install-art`, `render`, `stats`."""

from homework.cli import run

from .art import install_art
from .download import download
from .render import render

run(download, install_art, render)
