"""Where frames come from: `python -m supertux --help`."""

from homework.utils.cli import run

from .download import download
from .render.compare import compare
from .render.engines.pystk1.assets import install_course_engine
from .render.engines.pystk2.assets import install_art
from .render.engines.pystk2.check_boxes import accuracy
from .render.renderer import render
from .render.stats import stats
from .sample import make_sample, use_sample

run(download, use_sample, install_art, install_course_engine, render, stats, accuracy, compare, make_sample)
