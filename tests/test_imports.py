"""The packages import only what their layer may; function-level imports count too."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("homework", "supertux", "pretrain", "export", "grader", "viewer", "benchmarks")

# The first entry that is a prefix of a module's name says which modules of this repository it may import.
LAYERS = {
    "homework.utils": ["homework.utils"],
    "homework.labels": ["homework.labels", "homework.utils"],
    "homework.models": ["homework.models", "homework.labels", "homework.utils"],
    "homework.training": ["homework.training", "homework.models", "homework.labels", "homework.utils"],
    "homework": ["homework"],
    "supertux": ["supertux", "homework"],
    "pretrain": ["pretrain", "homework", "supertux.render", "supertux.sample"],
    "export": ["export", "homework"],
    "grader": ["grader", "homework"],
    "viewer": ["viewer", "homework"],
    "benchmarks": ["benchmarks", "viewer", "grader", "pretrain", "supertux", "homework"],
    "bundle": [],
}
# Third-party packages of the layers that do without the heavy ones.
LIBRARIES = {
    "homework.utils": {"tyro", "tqdm", "PIL"},
    "homework.labels": {"tqdm", "PIL", "numpy", "matplotlib", "msgspec"},
    "bundle": {"tqdm"},
}
# A bundle is graded in the course's environment, which lacks these.
NOT_IN_COURSE_ENV = {"tyro", "msgspec"}
LOADED_BY_GRADER = ("homework", "homework.base_vlm", "homework.clip", "homework.data", "homework.finetune")


def find_modules() -> dict[str, Path]:
    """Map each module name to its file."""
    files = [ROOT / "bundle.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    names = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


MODULES = find_modules()


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def statements(node: ast.AST, when: str) -> Iterator[ast.stmt]:
    """Yield import statements: all of them, those that ever run ("runtime"), or only those run at import ("import")."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        condition = ast.unparse(child.test) if isinstance(child, ast.If) else None
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_later = is_function or condition == "__name__ == '__main__'"
        if not (condition == "TYPE_CHECKING" and when != "all") and not (is_later and when == "import"):
            yield from statements(child, when)


@cache
def imports_of(module: str, when: str = "all") -> frozenset[str]:
    """Return the modules that a module imports by name; of this repository, the longest name that is a module."""
    file, found = MODULES[module], set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for statement in statements(ast.parse(file.read_text(encoding="utf-8")), when):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            above = package.split(".")[: len(package.split(".")) + 1 - statement.level] if statement.level else []
            base = ".".join([*above, *([statement.module] if statement.module else [])])
            names = [f"{base}.{alias.name}" for alias in statement.names]
        for name in names:
            while name.partition(".")[0] in PACKAGES and name not in MODULES and "." in name:
                name = name.rpartition(".")[0]
            found.add(name)
    return frozenset(found - {module})


def layer_of(module: str) -> str:
    return next(layer for layer in LAYERS if is_within(module, layer))


def test_every_module_has_a_layer():
    assert len(MODULES) > 60 and all(layer_of(module) for module in MODULES)


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer: str):
    """No module imports a package of this repository above its own layer, nor tests."""
    repository = (*PACKAGES, "bundle", "tests")
    breaches = [
        f"{module} -> {name}"
        for module in MODULES
        if layer_of(module) == layer
        for name in sorted(imports_of(module))
        if name.partition(".")[0] in repository and not any(is_within(name, allowed) for allowed in LAYERS[layer])
    ]
    assert breaches == []


@pytest.mark.parametrize("layer", LIBRARIES)
def test_libraries(layer: str):
    """Utilities, labels and bundle.py need no torch: only the standard library and a few small packages."""
    known = sys.stdlib_module_names | LIBRARIES[layer] | {*PACKAGES}
    breaches = [
        f"{module} -> {name}"
        for module in MODULES
        if layer_of(module) == layer
        for name in sorted(imports_of(module))
        if name.partition(".")[0] not in known
    ]
    assert breaches == []


def test_tux_nano_is_plain_pytorch():
    """TuxNano imports neither transformers nor peft."""
    breaches = [
        f"{module} -> {name}"
        for module in MODULES
        if is_within(module, "homework.models.tux_nano")
        for name in sorted(imports_of(module))
        if name.partition(".")[0] in ("transformers", "peft")
    ]
    assert breaches == []


def test_a_bundle_loads_in_the_course_environment():
    """Nothing that the course's grader imports needs a package that its environment lacks."""
    pending, loaded = [*LOADED_BY_GRADER, *(m for m in MODULES if is_within(m, "homework.models"))], set()
    while pending:
        module = pending.pop()
        if module not in loaded:
            loaded.add(module)
            pending += [name for name in imports_of(module, when="import") if name in MODULES]
    assert "homework.labels.rows" in loaded
    breaches = [
        f"{module} -> {name}"
        for module in sorted(loaded)
        for name in sorted(imports_of(module, when="import"))
        if name.partition(".")[0] in NOT_IN_COURSE_ENV
    ]
    assert breaches == []


def test_no_import_cycles():
    """No two modules import each other, directly or through others, wherever the import stands."""
    graph = {
        module: {name for name in imports_of(module, when="runtime") if name in MODULES and not is_within(module, name)}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))
