"""Each command of README and docs/COMMANDS exists with its flags and is run by `make demo` or a test."""

import re
import shlex
from pathlib import Path

import pytest

from homework.labels.frame_info import read_scenes
from tests.e2e.test_help import ask, options_in  # noqa: F401

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = README + (ROOT / "docs" / "COMMANDS.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

# What runs each command: a target of `make demo`, or a test file.
RUN_BY = {
    "bundle": "demo",
    "grader": "demo",
    "supertux download": "tests/supertux/test_download.py",
    "supertux use_sample": "demo",
    "supertux install_assets": "tests/supertux/pystk2/test_assets.py",
    "supertux install_legacy_engine": "tests/supertux/pystk1/test_assets.py",
    "supertux render": "tests/supertux/test_render.py",
    "supertux stats": "tests/supertux/test_stats.py",
    "homework.generate_qa check": "tests/homework/labels/test_generate.py",
    "homework.generate_qa generate": "demo",
    "homework.generate_captions check": "tests/homework/labels/test_generate.py",
    "homework.generate_captions generate": "demo",
    "homework.finetune demo_train": "tests/homework/training/test_progress.py",
    "homework.finetune train": "demo",
    "homework.finetune test": "demo",
    "homework.finetune ask": "tests/homework/test_ask.py",
    "homework.clip train": "demo",
    "homework.clip test": "demo",
    "homework.labels.eval_sets build": "tests/homework/labels/test_eval_sets.py",
    "homework.labels.eval_sets verify": "tests/homework/labels/test_eval_sets.py",
    "viewer report": "tests/viewer/test_report.py",
    "viewer explore": "tests/viewer/test_explorer.py",
    "benchmarks.throughput": "tests/benchmarks/test_throughput.py",
    "viewer.error_analysis": "tests/viewer/test_error_analysis.py",
    "benchmarks.vs_baseline": "tests/benchmarks/test_baseline.py",
}
NO_SUBCOMMAND = ("grader", "bundle", "viewer.error_analysis", "benchmarks.throughput", "benchmarks.vs_baseline")
OTHER_PROGRAMS = ("pip", "apt", "git", "tensorboard", "source")  # their arguments are checked below


def commands() -> list[str]:
    """List every command in a code block or between backticks, each once."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", COMMANDS, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", COMMANDS, flags=re.DOTALL).replace("\n", " "))
    lines = [re.sub(r"^torchrun .*?-m ", "python -m ", line.partition("  #")[0].strip()) for line in lines]
    programs = ("python", "python3", "make", *OTHER_PROGRAMS)
    return list(dict.fromkeys(line for line in lines if " " in line and line.split()[0] in programs))


def test_readme_is_short():
    assert len(README.splitlines()) <= 350 and len(commands()) > 40


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python")])
def test_command_exists_and_is_run(ask, command):  # noqa: F811
    """Its module, subcommand and flags exist, and the entry of `RUN_BY` runs it."""
    words = shlex.split(command)
    if words[1].endswith(".py"):
        words[1:2] = ["-m", words[1].removesuffix(".py") if words[1] == "bundle.py" else f"homework.{words[1][:-3]}"]
    module, name = words[2], () if words[2] in NO_SUBCOMMAND else (words[3].replace("-", "_"),)
    key = " ".join((module, *name))
    runner = RUN_BY[key]
    if runner == "demo":
        recipe = rf"\$\(PY\) (-m )?{re.escape(module)}(\.py)?\b" + "".join(f" {n.replace('_', '[-_]')}" for n in name)
        assert re.search(recipe, MAKEFILE), command
    else:
        text = (ROOT / runner).read_text()
        assert module.split(".")[-1] in text and all(re.search(rf"\b{n}\b", text) for n in name), (command, runner)
    status, page, _ = ask(module, *name, "--help")
    flags = {word.replace("_", "-") for word in words[3:] if word.startswith("--")}
    assert status == 0 and flags <= options_in(page) | {"--quiet"}, command


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_target_exists(command):
    """Each target of `make` exists and has a help text."""
    assert re.search(rf"^{command.split()[1]}:.*## ", MAKEFILE, re.MULTILINE), command


def test_arguments_of_other_programs_exist():
    """Files given to pip and git exist, and packages are pinned to versions known to work."""
    for command in (c for c in commands() if c.startswith(OTHER_PROGRAMS)):
        for word in command.split()[1:]:
            if "/" in word and not word.startswith((".venv", "-")):
                assert (ROOT / word).exists(), command
    assert all(name in (ROOT / "pyproject.toml").read_text() for name in ("ray==", "gguf=="))


def test_the_readmes_frame_is_read(tmp_path):
    """Its info.json has two karts, of which the one in the middle is the ego kart."""
    file = tmp_path / "00000_info.json"
    file.write_text(re.search(r"^```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1])
    ((_, scene),) = read_scenes(file)
    assert [kart.name for kart in scene.karts] == ["tux", "gnu"] and scene.ego.name == "tux"


def test_make_installs_in_one_line():
    """pip prints hundreds of lines; a line of our own says what is installed and how long that takes."""
    recipes = [line.strip() for line in MAKEFILE.splitlines() if "pip install" in line and line.startswith("\t")]
    assert len(recipes) >= 5 and all("--quiet" in recipe for recipe in recipes)
    for before, recipe in zip(MAKEFILE.splitlines(), MAKEFILE.splitlines()[1:], strict=False):
        if recipe.startswith("\t@") and "pip install --quiet -r" in recipe:
            assert f"installing {recipe.split()[-1]} into " in before and "minutes" in before
