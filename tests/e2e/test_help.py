"""Every command of every module: its help names all flags, and a mistyped flag is answered with the right one."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = (
    *(f"homework.{name}" for name in ("generate_qa", "generate_captions", "finetune", "clip", "labels.eval_sets")),
    *("supertux", "export", "grader", "grader.autograder", "viewer", "viewer.error_analysis", "pretrain", "bundle"),
    *(f"benchmarks.{name}" for name in ("throughput", "vs_baseline", "random_smolvlm")),
)
OPTION = re.compile(r"^\W*(?:-h, )?(--[a-z][\w-]+)", re.MULTILINE)
COMMAND = re.compile(r"^\W+• ([\w-]+)", re.MULTILINE)


@pytest.fixture
def ask(monkeypatch, capsys):
    """`ask(module, *arguments)` runs `python -m module arguments` and gives (exit status, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "120")

    def ask(module: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return ended.value.code or 0, *capsys.readouterr()

    return ask


def commands_in(page: str) -> list[str]:
    """The subcommands of a help page."""
    return COMMAND.findall(page)


def options_in(page: str) -> set[str]:
    """The flags of a help page."""
    return set(OPTION.findall(page))


def misspelt(name: str) -> str:
    """Two letters in the middle change places."""
    at = max(1 + name.startswith("--") * 2, len(name) // 2)
    return name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(("benchmarks", "bundle"))])
def test_a_python_without_the_packages_is_one_line(module):
    """`-S` hides the packages, as a Python outside of .venv lacks them."""
    done = subprocess.run([sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    remedy = "run `make venv`, then `source .venv/bin/activate`"
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(rf"error: this Python: lacks the package \w+; {remedy}\n", done.stderr)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES)
def test_every_command(ask, module):
    """Help explains each flag and gives an example with existing flags; a mistyped flag leads to the right one."""
    status, page, _ = ask(module, "--help")
    names = [(name,) for name in commands_in(page)] or [()]
    assert status == 0 and len(names) == len(set(names))
    for name in names:
        status, page, _ = ask(module, *name, "--help")
        options = options_in(page)
        assert status == 0 and "--help" in options and "submitted" not in page  # `vlm` is the shipped one
        if example := re.search(r"Example: (python.*?)\n\s*\n", page, re.DOTALL):
            words = shlex.split(example[1])
            given = words[3 if words[1] == "-m" else 2 :]
            assert [word.replace("_", "-") for word in given[: len(name)]] == [*name]
            assert {word.replace("_", "-") for word in given if word.startswith("--")} <= options, example[1]
        arguments = ["homework", "ID"] if module == "bundle" else ["x"] * ("positional" in page)
        needs_flags = "(required)" in page.partition(" options ")[2]  # else these are named instead
        for flag in (flag for flag in options - {"--help", "--quiet"} if misspelt(flag) != flag):
            status, _, error = ask(module, *name, *arguments, misspelt(flag), "1")
            assert status == 2 and (needs_flags or flag in error), (module, name, flag, error)
