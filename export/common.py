"""Serve every export: new folders that replace only earlier exports, checks of packages, and Markdown cards."""

import contextlib
import importlib.util
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from homework.utils.errors import InputError
from homework.utils.io import atomic_folder, check_writable, write_json

MANIFEST_FILE = "export.json"  # in an export's folder: what it is and what it was made of
TEMPLATES = Path(__file__).parent / "templates"


def tool_version() -> str:
    """Return this repository's name and version, e.g. `tux-vlm 0.1.0`."""
    try:
        return f"tux-vlm {version('tux-vlm')}"
    except PackageNotFoundError:  # run from a clone
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
        return f"{project['name']} {project['version']}"


def require(*modules: str) -> None:
    """Check that modules of the export's own environment can be imported.

    Raises:
        InputError: one cannot.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            remedy = "run `make export-env`, then this command with .venv-export/bin/python"
            raise InputError(name, "this package is not installed", remedy)


def check_replaceable(output: Path) -> None:
    """Check before long work that `output` may be written: it is new, empty, or an earlier export.

    Raises:
        InputError: it holds anything else, or is not writable.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / MANIFEST_FILE).is_file()):
        raise InputError(
            output, "already exists and is not an export; refusing to replace it", "choose another --output"
        )
    check_writable(output, folder=True)


@contextlib.contextmanager
def new_folder(output: Path, **manifest) -> Iterator[Path]:
    """Yield a temporary folder beside `output`, and put it in its place if the block succeeds.

    Args:
        manifest: what to record in `MANIFEST_FILE` beside the version.
    """
    check_replaceable(output)
    with atomic_folder(output) as new:
        new.mkdir()
        yield new
        write_json(new / MANIFEST_FILE, {"generator": tool_version(), **manifest})


def render(template: str, **values) -> str:
    """Render a template of `templates/`."""
    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template(template).render(version=tool_version(), **values).strip() + "\n"


def write_card(folder: Path, template: str, **values) -> None:
    """Render a template as the README.md of a data set or model."""
    (folder / "README.md").write_text(render(template, **values), encoding="utf-8")
