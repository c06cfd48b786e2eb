"""Export data sets, models, an lmms-eval task, a web page and ONNX files."""

from homework.utils.cli import run
from homework.utils.errors import cli_errors

with cli_errors():  # a missing package is one line
    from .dataset import dataset
    from .idefics3 import onnx
    from .lmms_eval import lmms_eval
    from .model import model
    from .web.command import web

run(dataset, model, lmms_eval, web, onnx)
