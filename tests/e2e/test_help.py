"""Every command of every module: its help is whole, and a wrong name is answered with the right one."""

import re
import runpy
import shlex
import sys

import pytest

MODULES = (
    *(
        "homework.generate_qa",
        "homework.generate_captions",
        "homework.finetune",
        "homework.clip",
        "homework.labels.eval_sets",
    ),
    *("supertux", "grader", "viewer", "pretrain", "bundle"),
    *("viewer.error_analysis", "benchmarks.throughput", "benchmarks.vs_baseline", "benchmarks.random_smolvlm"),
    *(f"benchmarks.{name}" for name in ("clip_steps", "full", "scaling")),
)
OPTION = re.compile(r"^  (?:-h, )?(--[\w-]+)(?: (?:<\w+>|[A-Z]+))?(?:  +(\S.*))?$")
NO_NAME = ("grader", "bundle", "benchmarks.throughput")  # of one command, whose name is left out


@pytest.fixture
def ask(monkeypatch, capsys):
    """`ask(module, *arguments)` runs `python -m module arguments` and gives (exit status, stdout, stderr)."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def ask(module: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return ended.value.code or 0, *capsys.readouterr()

    return ask


def commands_in(page: str) -> list[str]:
    """The names under `Commands:` of a help page."""
    return re.findall(r"^  (\w+)  ", page.partition("Commands:\n")[2], re.MULTILINE)


def options_in(page: str) -> dict[str, str]:
    """Flag -> its help, of the lines under `Options:`; fails where a flag takes more than a line."""
    lines = re.split(r"^options:\n", page, flags=re.MULTILINE | re.IGNORECASE)[1].partition("\n\n")[0].splitlines()
    found = [OPTION.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {match[1]: match[2] or "" for match in found}


def misspelt(name: str) -> str:
    """Two letters in the middle change places."""
    at = max(1 + name.startswith("--") * 2, len(name) // 2)
    return name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", MODULES)
def test_every_command(ask, module):
    """Help ends well; a flag has one line with its default, and the example runs as far as its flags go."""
    status, page, _ = ask(module, "--help")
    names = [()] if module in NO_NAME else [(name,) for name in commands_in(page)]
    assert status == 0 and names
    for name in names:
        status, page, _ = ask(module, *name, "--help")
        assert status == 0
        options = options_in(re.sub(r"\n {10,}", " ", page))
        assert {"--help", "--quiet"} <= set(options)
        for flag, text in options.items():
            words = re.fullmatch(r"(.*\w.*?) +\[(required|default: .+)\]", text)
            assert flag == "--help" or words, f"{module} {name} {flag}: {text}"
        example = re.search(r"Example: (python.*)", page)[1]
        words = shlex.split(example)
        given = words[3 if words[1] == "-m" else 2 :]
        assert [word.replace("-", "_") for word in given[: len(name)]] == [*name]
        assert {"--" + word[2:].replace("-", "_") for word in given if word.startswith("--")} <= set(options), example
        check_misspelt(ask, module, name, options)


def check_misspelt(ask, module: str, name: tuple[str, ...], options: dict[str, str]) -> None:
    """Each wrong flag and the wrong command are answered with the right one."""
    required = ["homework", "ID"] if module == "bundle" else []
    for flag in set(options) - {"--help"}:
        for wrong in {misspelt(flag), misspelt(flag.replace("_", "-"))} - {flag}:
            status, _, error = ask(module, *name, *required, wrong, "1")
            assert status == 2 and f"Did you mean {flag}?" in error, (module, name, wrong, error)
    if name:
        status, _, error = ask(module, misspelt(name[0]))
        assert status == 2 and f"Did you mean '{name[0]}'" in error
