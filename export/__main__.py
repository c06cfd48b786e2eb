"""Export data sets, models, an lmms-eval task and a web page."""

from homework.utils.cli import run

from .dataset import dataset
from .web.command import web

run(dataset, web)
