"""Where frames come from: `python -m supertux --help`."""

from homework.cli import run

from .accuracy import accuracy
from .art import install_art
from .compare import compare
from .course_art import install_course_engine
from .download import download
from .render import render
from .sample import make_sample, use_sample
from .stats import stats

run(download, use_sample, install_art, install_course_engine, render, stats, accuracy, compare, make_sample)
