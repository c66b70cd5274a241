"""vLLM's Python files, in a folder or a wheel, read and not run: where a name is, what members and calls there are."""

import ast
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from inspect import Parameter, Signature
from pathlib import Path

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A module, a class, a function or an assignment of vLLM; without a node it is somebody else's.

    Attributes:
        module: where it is.
        name: its own.
        node: its source, if it is vLLM's.
        is_object: whether it is an object of that class.
    """

    module: str
    name: str
    node: ast.AST | None = None
    is_object: bool = False

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Sources:
    """One release of vLLM.

    Args:
        root: the folder that holds `vllm`, or a wheel.
        edits: texts to put in place of others, `{file: (old, new)}`, to see that a change is noticed.
    """

    def __init__(self, root: Path, edits: dict[str, tuple[str, str]] | None = None):
        self.root, self.edits, self.trees, self.found = root, edits or {}, {}, {}
        self.wheel = None if root.is_dir() else zipfile.ZipFile(root)
        self.files = set() if self.wheel is None else set(self.wheel.namelist())

    def tree(self, module: str) -> ast.Module | None:
        """Of a module of vLLM; None if there is none."""
        if module not in self.trees:
            path = self.path(module) if module.split(".")[0] == "vllm" else None
            self.trees[module] = None if path is None else parsed(self.read(path))
        return self.trees[module]

    def path(self, module: str) -> str | None:
        stem = module.replace(".", "/")
        for each in (f"{stem}.py", f"{stem}/__init__.py"):
            if each in self.files if self.wheel else (self.root / each).is_file():
                return each
        return None

    def read(self, path: str) -> str:
        text = (self.wheel.read(path) if self.wheel else (self.root / path).read_bytes()).decode()
        old, new = self.edits.get(path, ("", ""))
        assert old in text, (path, old)
        return text.replace(old, new) if old else text

    def find(self, module: str, name: str) -> Definition | None:
        """What a module knows under a name; None if nothing."""
        if (module, name) not in self.found:
            self.found[module, name] = self.look_for(module, name)
        return self.found[module, name]

    def look_for(self, module: str, name: str) -> Definition | None:
        tree = self.tree(module)
        if tree is None:
            return None if module.split(".")[0] == "vllm" else Definition(module, name)
        found = None
        for node in statements(tree.body):
            if isinstance(node, FUNCTION | ast.ClassDef) and node.name == name:
                found = Definition(module, name, node)  # the last one, after those of `overload`
            elif found is None and isinstance(node, ast.Assign | ast.AnnAssign) and name in targets(node):
                found = Definition(module, name, node)
            elif found is None and isinstance(node, ast.ImportFrom | ast.Import):
                found = self.imported(module, node, name)
        return found or self.as_module(f"{module}.{name}")

    def as_module(self, name: str) -> Definition | None:
        tree = self.tree(name)
        return None if tree is None else Definition(name, name, tree)

    def imported(self, module: str, node: ast.ImportFrom | ast.Import, name: str) -> Definition | None:
        """What an import in a module brings under a name."""
        if isinstance(node, ast.Import):
            full = {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            return Definition(full[name], name, self.tree(full[name])) if name in full else None
        other = node.module or ""
        if node.level:
            above = node.level - self.path(module).endswith("__init__.py")
            package = module.rsplit(".", above)[0] if above else module
            other = f"{package}.{other}".rstrip(".")
        for alias in node.names:
            if name == (alias.asname or alias.name) or (alias.name == "*" and other.startswith("vllm")):
                found = self.find(other, name if alias.name == "*" else alias.name) if other != module else None
                if found is not None:
                    return found
        return None

    def resolve(self, module: str, expression: ast.AST | None) -> Definition | None:
        """What an annotation, a base or a function in a module means; None if it is none or several."""
        match expression:
            case ast.Constant(value=str(text)):
                return self.resolve(module, ast.parse(text, mode="eval").body)
            case ast.Name(id=name):
                return self.find(module, name)
            case ast.Attribute(value=value, attr=name):
                owner = self.resolve(module, value)
                return None if owner is None else self.attribute(owner, name)
            case ast.BinOp(left=left, op=ast.BitOr(), right=ast.Constant(value=None)):
                return self.resolve(module, left)
            case ast.Subscript(value=ast.Name(id="Optional"), slice=part):
                return self.resolve(module, part)
        return None

    def attribute(self, owner: Definition, name: str) -> Definition | None:
        """Of a module, a class or an object."""
        return self.member(owner, name) if owner.is_class else self.find(owner.module, name)

    def lineage(self, cls: Definition) -> Iterator[Definition]:
        """A class and what it inherits from, depth first."""
        yield cls
        for base in cls.node.bases if cls.is_class else ():
            inner = base.value if isinstance(base, ast.Subscript) else base  # Generic[T]
            found = self.resolve(cls.module, inner)
            if found is not None:
                yield from self.lineage(found)

    def member(self, cls: Definition, name: str) -> Definition | None:
        """Of a class or of its objects; None if there is none. Without a node where somebody else's class has it."""
        for each in self.lineage(cls):
            found = self.own_member(each, name) if each.is_class else None
            if found is not None:
                return Definition(each.module, name, found)
            if each.node is None and any(name in vars(one) for one in external(each).__mro__):
                return Definition(each.module, name)
        return None

    def own_member(self, cls: Definition, name: str) -> ast.AST | None:
        """What a class's body defines under a name, its methods for `self`, a function of its module for `layer`."""
        for node in statements(cls.node.body):
            if isinstance(node, FUNCTION) and node.name == name:
                return node
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in targets(node):
                return node
        return given(cls.node, "self").get(name) or given(self.tree(cls.module), "layer").get(name)

    def type_of(self, definition: Definition) -> Definition | None:
        """An object like that in an assignment or a property, if its annotation or its value says of which class."""
        match definition.node:
            case ast.AnnAssign(annotation=annotation):
                return as_object(self.resolve(definition.module, annotation))
            case ast.FunctionDef(decorator_list=decorators, returns=annotation) if "property" in texts(decorators):
                return as_object(self.resolve(definition.module, annotation))
            case ast.Assign(value=ast.Call(func=function)):
                return self.returned(self.resolve(definition.module, function))
        return None

    def returned(self, function: Definition | None) -> Definition | None:
        """An object like that which a call gives; of a class, one of its own."""
        if function is not None and isinstance(function.node, FUNCTION):
            return as_object(self.resolve(function.module, function.node.returns))
        return None if function is None or function.is_object else as_object(function)

    def signature(self, definition: Definition, is_bound: bool = False) -> Signature | None:
        """What a call takes, of a class its constructor; None if it is somebody else's."""
        if isinstance(definition.node, FUNCTION):
            return of_arguments(definition.node.args, is_bound)
        if not definition.is_class:
            return None
        constructor = self.member(definition, "__init__")
        if constructor is not None and constructor.node is not None:
            return of_arguments(constructor.node.args, True)
        fields = [name for each in reversed([*self.lineage(definition)]) for name in fields_of(each)]
        kind = Parameter.POSITIONAL_OR_KEYWORD
        return Signature([Parameter(name, kind, default=None) for name in dict.fromkeys(fields)])


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def external(definition: Definition) -> type:
    """Somebody else's class, as it is installed; that of all objects if it is not there."""
    try:
        found = getattr(import_module(definition.module), definition.name, object)
    except ImportError:
        return object
    return found if isinstance(found, type) else object


def as_object(definition: Definition | None) -> Definition | None:
    return replace(definition, is_object=True) if definition is not None and definition.is_class else None


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Of a module or a class, those under `if`, `try` and `with` as well."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            for part in ("body", "handlers", "orelse", "finalbody"):
                yield from statements(getattr(node, part, []))


@cache
def targets(node: ast.Assign | ast.AnnAssign) -> set[str]:
    """What an assignment gives a value, as it is written: `name`, `self.name`."""
    every = node.targets if isinstance(node, ast.Assign) else [node.target]
    return texts(part for each in every for part in (each.elts if isinstance(each, ast.Tuple) else [each]))


@cache
def given(tree: ast.AST, owner: str) -> dict[str, ast.AST]:
    """Attributes and buffers that an object gets, by its name in a class or a module."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names = [text.removeprefix(f"{owner}.") for text in targets(node) if text.startswith(f"{owner}.")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == f"{owner}.register_buffer":
            names = [node.args[0].value]
        else:
            continue
        for name in names:
            found.setdefault(name, node)
    return found


@cache
def strings(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def texts(nodes: Iterable[ast.AST]) -> set[str]:
    return {ast.unparse(each) for each in nodes}


def fields_of(cls: Definition) -> list[str]:
    """Of a dataclass, a struct, or a dictionary with types."""
    body = cls.node.body if cls.is_class else []
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign)]


def of_arguments(arguments: ast.arguments, is_bound: bool) -> Signature:
    """Without the first one, if that is the object."""
    positional = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
    pairs = zip(positional + arguments.kwonlyargs, defaults + arguments.kw_defaults, strict=True)
    kinds = [Parameter.POSITIONAL_OR_KEYWORD] * len(positional) + [Parameter.KEYWORD_ONLY] * len(arguments.kwonlyargs)
    parameters = [
        Parameter(each.arg, kind, default=Parameter.empty if default is None else default)
        for kind, (each, default) in zip(kinds, pairs, strict=True)
    ][is_bound:]
    if arguments.vararg:
        parameters.append(Parameter(arguments.vararg.arg, Parameter.VAR_POSITIONAL))
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(sorted(parameters, key=lambda parameter: parameter.kind))
