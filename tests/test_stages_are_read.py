"""How often which layers run is said once, by `config.stages`: nothing else multiplies loops by layers."""

import ast
from collections.abc import Iterator

import pytest
from checkout import FOLDERS, ROOT

LOOPS = {"num_loops"}
LAYERS = {"num_hidden_layers", "layers"}

# file and definition that name both, and why
ALLOWED = {
    ("configuration_plt/configuration_plt.py", "PLTConfig"): "it says what the stages are",
    ("serving_plt/vllm/configs.py", "ServedConfig"): "has types of layers, and asks whether there is a carry",
}


def bodies(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST]]]:
    """The outermost definitions by name, and what stands outside of them."""
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    yield from ((node.name, [node]) for node in definitions)
    yield "(module)", [node for node in tree.body if node not in definitions]


def naming_both(source: str) -> list[str]:
    """The definitions that name a number of loops, and of layers or the layers themselves."""
    found = []
    for name, nodes in bodies(ast.parse(source)):
        parts = [part for node in nodes for part in ast.walk(node)]
        names = {part.attr for part in parts if isinstance(part, ast.Attribute)}
        names |= {part.id for part in parts if isinstance(part, ast.Name)}
        if names & LOOPS and names & LAYERS:
            found.append(name)
    return found


def test_only_the_config_multiplies_loops_by_layers():
    files = sorted(file for folder in FOLDERS.values() for file in folder.rglob("*.py"))
    found = {
        (file.relative_to(ROOT).as_posix(), name)
        for file in files
        for name in naming_both(file.read_text(encoding="utf-8"))
    }
    assert found - ALLOWED.keys() == set(), "these must read `config.stages`"
    assert ALLOWED.keys() - found == set(), "these need no exception any more"


@pytest.mark.parametrize(
    "source",
    [
        "def cells(config): return config.num_loops * config.num_hidden_layers",
        "def total(model, num_loops): return len(model.layers) * num_loops",
        "def run(config):\n for _ in range(config.num_loops):\n  for _ in range(config.num_hidden_layers): pass",
        "class Bar:\n def one(self): return self.num_loops\n def two(self): return self.num_hidden_layers",
        "TOTAL = CONFIG.num_loops * CONFIG.num_hidden_layers",
    ],
)
def test_whoever_multiplies_them_is_found(source):
    assert len(naming_both(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def cells(config): return sum(len(stage.layers) * len(stage.loops) for stage in config.stages)",
        "def plain(fields): return fields | {'num_loops': 1, 'num_hidden_layers': 2}",
        "def loops(config): return config.num_loops\ndef layers(config): return config.num_hidden_layers",
    ],
)
def test_who_reads_the_stages_or_one_of_both_is_left_alone(source):
    assert naming_both(source) == []
