"""Turn functions into command lines with tyro: parameters become flags, and docstrings their help."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from .errors import cli_errors
from .progress import show_messages, suppress_output


def run(*functions: Callable) -> None:
    """Run the function that the command line names, or the only one given.

    tyro reads signatures and docstrings: parameters before `/` are arguments, all others flags, and `--some_flag` is
    `--some-flag`. Each command also takes `--quiet`, which hides progress bars and messages.

    Raises:
        SystemExit: see `cli_errors`; 2 for a mistyped command line.
    """
    modules = "homework", "__main__", _program().split()[-1], *(function.__module__ for function in functions)
    show_messages({module.partition(".")[0] for module in modules})
    arguments = [argument for argument in sys.argv[1:] if argument != "--quiet"]
    with cli_errors(), _interruptible_imports(), suppress_output("--quiet" in sys.argv[1:]):
        import tyro  # deferred: a grader imports this module without needing a command line

        program, settings = _program(), {"config": (tyro.conf.FlagCreatePairsOff,)}
        if len(functions) == 1:
            tyro.cli(functions[0], args=arguments, prog=program, **settings)
            return
        commands = {_command_name(function.__name__): function for function in functions}
        name = _command_name(arguments[0]) if arguments else None
        if name in commands:  # parsed alone, so that a mistyped flag is answered with this command's flags and name
            tyro.cli(commands[name], args=arguments[1:], prog=f"{program} {name}", **settings)
            return
        description = (sys.modules["__main__"].__doc__ or "").split("\n\n")[0]
        tyro.extras.subcommand_cli_from_dict(
            commands, args=arguments, prog=program, description=description, **settings
        )


@contextlib.contextmanager
def _interruptible_imports() -> Iterator[None]:
    """Let Ctrl-C during an import end the process at once; elsewhere it raises KeyboardInterrupt as usual.

    Importing torch takes seconds, and a KeyboardInterrupt inside it may get lost: torch imports numpy from C++ and
    ignores its errors, and importlib's weak references can only print them.
    """

    def interrupt(_, frame) -> None:
        while frame:
            if frame.f_code.co_filename.startswith("<frozen importlib."):
                print("interrupted", file=sys.stderr, flush=True)
                os._exit(130)
            frame = frame.f_back
        raise KeyboardInterrupt

    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _program() -> str:
    """Return the command that a user typed before the arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else f"python {sys.argv[0]}"


def _command_name(name: str) -> str:
    return name if name.startswith("-") else name.replace("_", "-")
