"""Export data sets, models, an lmms-eval task and a web page."""

from homework.utils.cli import run

from .dataset import dataset
from .model import model
from .web.command import web

run(dataset, model, web)
