"""Functions -> commands: parameters become arguments and flags, docstrings become the help."""

import inspect
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from typing import Annotated

from .errors import cli_errors
from .progress import show_messages, suppress_output

HELP_WIDTH = 120  # a flag's help is one line, in a terminal that is as wide
QUIET = "no bars and no notes: the result and errors alone"


def enable_keyboard_interrupt() -> None:
    """Let Ctrl-C raise a KeyboardInterrupt again: a command's imports are done."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(*functions: Callable, alone: bool = False) -> None:
    """Run the function that the command line names.

    A parameter without a default is an argument, or a required flag where it is keyword-only; one with a
    default is a flag. `--some_flag` and `--some-flag` are the same; `from_` becomes `--from`. The help of each
    comes from the line in the docstring's `Args:`, the example from a paragraph that begins with `Example:`, or
    it is made of the parameters. Each command also has `--quiet`. typer is imported here alone, since a grader
    needs no command line.

    Args:
        alone: there is one function, and its name is left out.
    """
    import typer

    enable_keyboard_interrupt()
    show_messages({"homework", "__main__", *(function.__module__.partition(".")[0] for function in functions)})
    width = min(HELP_WIDTH, shutil.get_terminal_size((HELP_WIDTH, 24)).columns)
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={
            "token_normalize_func": lambda name: name.replace("-", "_"),
            "help_option_names": ["-h", "--help"],
            "max_content_width": width,
            "terminal_width": width,
        },
    )
    if not alone:  # the callback keeps the command's name even where there is one command
        first = (sys.modules["__main__"].__doc__ or "").split("\n\n")[0]
        epilog = f"The flags of a command, with an example: {_program()} {functions[0].__name__} --help"
        app.callback(help=first, epilog=epilog)(lambda: None)
    for function in functions:
        name = "" if alone else f" {function.__name__}"
        epilog = f"\b\nExample: {_example(function) or _program() + name + _made(function)}"
        settings = {"help": _summary(function), "epilog": epilog, "cls": _command_class(), "no_args_is_help": False}
        app.command(function.__name__, **settings)(_documented(function))
    app(prog_name=_program())


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def _command_class() -> type:
    """A typer command that names, of a wrong flag, the nearest right one alone."""
    from typer.core import TyperCommand

    class Command(TyperCommand):
        def parse_args(self, ctx, args):
            try:
                return super().parse_args(ctx, args)
            except Exception as error:
                if nearest := getattr(error, "possibilities", None):
                    error.message, error.possibilities = f"{error.message}. Did you mean {nearest[0]}?", None
                raise

    return Command


def _doc(function: Callable) -> str:
    return inspect.getdoc(function) or ""


def _summary(function: Callable) -> str:
    """The docstring up to its sections."""
    return re.split(r"\n\s*(?:Args|Returns|Raises):\n|\n\s*Example: ", _doc(function))[0]


def _example(function: Callable) -> str | None:
    """The docstring's paragraph that begins with `Example:`."""
    found = re.search(r"^\s*Example: (.+(?:\n[ \t]*\S.*)*)", _doc(function), re.MULTILINE)
    return " ".join(found[1].split()) if found else None


def _made(function: Callable) -> str:
    """An example's words: what is required, each as its help has it after `e.g.`; else the first default."""
    helps, words, defaults = _helps(function), [], []
    for parameter in inspect.signature(function).parameters.values():
        found = re.search(r"e\.g\. (\S+)", helps.get(parameter.name, ""))
        value = found[1] if found else "0" if parameter.annotation is int else parameter.name.upper()
        flag = f"--{parameter.name.rstrip('_')}"
        if parameter.default is parameter.empty:
            words += [flag, value] if parameter.kind is parameter.KEYWORD_ONLY else [value]
        elif parameter.default not in (None, "", False):
            defaults += [flag, _shown(parameter.default)]
    return "".join(f" {word}" for word in words or defaults[:2])


def _shown(default) -> str:
    """A default for the screen; a path as short as it can be."""
    if default in (None, ""):
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    text = str(default)
    return min(text, os.path.relpath(text), key=len) if os.path.isabs(text) else text


def _helps(function: Callable) -> dict[str, str]:
    """Parameter -> its line in the docstring."""
    lines = re.findall(r"^\s+(\w+): (.+(?:\n\s{8,}.+)*)", _doc(function), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines}


def _documented(function: Callable) -> Callable:
    """The function with each parameter's annotation extended by its help."""
    import typer

    helps, parameters = _helps(function), []
    for parameter in inspect.signature(function).parameters.values():
        text, flag = helps.get(parameter.name, ""), f"--{parameter.name.rstrip('_')}"
        if parameter.default is parameter.empty:
            argument = parameter.kind is not parameter.KEYWORD_ONLY
            info = typer.Argument(help=text) if argument else typer.Option(flag, help=text)
        else:
            text = f"{text.rstrip('.')} [default: {_shown(parameter.default)}]"
            info = typer.Option(flag, help=text, show_default=False)
        parameters.append(parameter.replace(annotation=Annotated[parameter.annotation, info]))
    info = typer.Option("--quiet", help=f"{QUIET} [default: off]", show_default=False)
    parameters.append(
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, info])
    )

    def command(*, quiet: bool, **values):
        with cli_errors(), suppress_output(quiet):  # inside of the app, which has an ending of its own for Ctrl-C
            return function(**values)

    command.__signature__ = inspect.Signature(sorted(parameters, key=lambda p: p.kind))
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
