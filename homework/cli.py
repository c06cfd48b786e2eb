"""Functions -> commands: parameters become arguments and flags, docstrings become the help."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Annotated

from .errors import one_line_errors


def run(*functions: Callable) -> None:
    """Run the function that the command line names.

    A parameter without a default is an argument, or a required flag where it is keyword-only; one with a
    default is a flag. `--some_flag` and `--some-flag` are the same; `from_` becomes `--from`. The help of each
    comes from the line in the docstring's `Args:`. typer is imported here alone, since a grader needs no
    command line.
    """
    import typer

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "help_option_names": ["-h", "--help"],
        },
    )
    app.callback()(lambda: None)  # keeps the command's name even where there is one command alone
    for function in functions:
        app.command(function.__name__, help=_summary(function))(_documented(function))
    app(prog_name=_program())


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def _summary(function: Callable) -> str:
    """The docstring up to its sections."""
    return re.split(r"\n\s*(?:Args|Returns|Raises):\n", inspect.getdoc(function) or "")[0]


def _documented(function: Callable) -> Callable:
    """The function with each parameter's annotation extended by its help."""
    import typer

    lines = re.findall(r"^\s+(\w+): (.+(?:\n\s{8,}.+)*)", inspect.getdoc(function) or "", re.MULTILINE)
    helps = {name: " ".join(text.split()) for name, text in lines}
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        required = parameter.default is parameter.empty
        argument = required and parameter.kind is not parameter.KEYWORD_ONLY
        text = helps.get(parameter.name)
        info = typer.Argument(help=text) if argument else typer.Option(f"--{parameter.name.rstrip('_')}", help=text)
        annotation = Annotated[parameter.annotation, info]
        parameters.append(parameter.replace(annotation=annotation))

    def command(**values):
        with one_line_errors():  # inside of the app, which has an ending of its own for Ctrl-C
            return function(**values)

    command.__signature__ = inspect.Signature(sorted(parameters, key=lambda p: p.kind))
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
