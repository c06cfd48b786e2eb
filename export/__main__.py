"""Export data sets, models, an lmms-eval task and a web page."""

from homework.utils.cli import run

from .dataset import dataset
from .lmms_eval import lmms_eval
from .model import model
from .web.command import web

run(dataset, model, lmms_eval, web)
