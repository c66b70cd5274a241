"""The import graph, drawn from the sources: packages import downward, modules of a package in no circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from checkout import FOLDERS

FLOORS = {
    "configuration_plt": 0,
    "modeling_plt": 1,
    "conversion_plt": 2,
    "training_plt": 3,
    "measuring_plt": 3,
    "serving_plt": 4,
    "laboratory": 5,
    "command_plt": 6,
}


def modules() -> dict[str, Path]:
    """Every module of every package, by its dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """The modules of ours that a module imports, at its top or in a function, and whether by a relative import."""
    is_package = MODULES[name].name == "__init__.py"
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets, level = [alias.name for alias in node.names], 0
        elif isinstance(node, ast.ImportFrom):
            level = node.level
            parents = name.split(".")[: len(name.split(".")) - level + is_package] if level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets = [full if full in MODULES else base for full in names]
        else:
            continue
        yield from ((target, level > 0) for target in targets if target.split(".")[0] in FOLDERS)
    if name == "conversion_plt.sources":  # imports by their names whatever files it finds
        yield from ((module, True) for module in MODULES if module.startswith(f"{name}."))


@pytest.mark.parametrize("package", FOLDERS)
def test_packages_import_downward(package):
    for name in MODULES:
        for target, _ in imports(name):
            other = target.split(".")[0]
            if name.split(".")[0] == package and other != package:
                assert FLOORS[other] < FLOORS[package], f"{name} imports {target}"


@pytest.mark.parametrize("package", FOLDERS)
def test_modules_of_a_package_import_in_no_circle(package):
    graph = {
        name: {target for target, _ in imports(name) if target.split(".")[0] == package}
        for name in MODULES
        if name.split(".")[0] == package
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("package", FOLDERS)
def test_imports_inside_a_package_are_relative(package):
    absolute = [
        f"{name} imports {target}"
        for name in MODULES
        for target, is_relative in imports(name)
        if name.split(".")[0] == package == target.split(".")[0] and not is_relative
    ]
    assert not absolute


def test_what_is_imported_is_there():
    """A name that is misread would leave the graph, and pass."""
    for name in MODULES:
        for target, _ in imports(name):
            assert target in MODULES, f"{name} imports {target}"
    assert ("conversion_plt.reading.fields", True) in imports("conversion_plt.sources.llama")
    assert ("configuration_plt", False) in imports("modeling_plt")
