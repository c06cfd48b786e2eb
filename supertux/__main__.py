"""Get frames: download the course's, copy the sample's, or draw them with the game."""

from homework.utils.cli import run
from homework.utils.errors import cli_errors

with cli_errors():  # a missing package is one line
    from .download import download
    from .render.engines.pystk1.assets import install_legacy_engine
    from .render.engines.pystk2.assets import install_assets
    from .render.renderer import render
    from .render.stats import stats
    from .sample import make_sample, use_sample

run(download, use_sample, install_assets, install_legacy_engine, render, stats, make_sample)
