"""What the code imports is declared in setup.cfg: in the core, or in the extra that its folder belongs to."""

import ast
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
PACKAGES = {name.split(".")[0] for name in SETUP["options"]["packages"].split()} | {"laboratory"}
EXTRAS = {  # that the folder's users are told to install; the other folders have the core alone
    "command_plt": ["eval"],
    "conversion_plt": ["convert"],
    "examples": ["train", "eval", "smollm2"],
    "laboratory": ["bench", "train", "tools", "vllm"],  # of `tools`, what is asked for by name
    "measuring_plt": ["bench"],
    "serving_plt": ["vllm", "bench"],
    "tests": list(SETUP["options.extras_require"]),
    "training_plt": ["train"],
}
PROVIDERS = packages_distributions()  # of what is installed: `google` comes with protobuf


def declared(folder: str) -> set[str]:
    listed = [SETUP["options"]["install_requires"]]
    listed += [SETUP["options.extras_require"][extra] for extra in EXTRAS.get(folder, [])]
    return {canonicalize_name(Requirement(line).name) for lines in listed for line in lines.strip().splitlines()}


def imported(file: Path) -> set[str]:
    """The top-level names of a file's imports, wherever in it they are; relative ones have none."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("folder", sorted({*PACKAGES, "examples", "tests"}))
def test_what_is_imported_is_declared(folder):
    files = list((ROOT / folder).rglob("*.py"))
    ours = PACKAGES | set(sys.stdlib_module_names)
    if folder not in PACKAGES:
        ours |= {file.stem for file in files}  # scripts that import each other
        ours.add("tests")  # of a peer, whose sources `make test-peers` unpacks
    undeclared = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files
        for name in imported(file) - ours
        if not {canonicalize_name(provider) for provider in PROVIDERS.get(name, [name])} & declared(folder)
    }
    assert files
    assert not undeclared
