"""What a file of the plugin asks of vLLM, held against vLLM's sources: names, members, arguments, overrides."""

import ast
import re
from pathlib import Path

from sources import FUNCTION, Definition, Sources, as_object, strings, targets, texts

ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
REST = {"LLM": ENGINE_ARGS, "engine": ENGINE_ARGS}  # the class whose fields further keywords of a call are
METADATA = "vllm.v1.attention.backends.short_conv_attn:ShortConvAttentionMetadata"
OBJECTS = {  # the class of what nothing else tells, by its text
    "llm": "vllm.entrypoints.llm:LLM",
    "shared_llm": "vllm.entrypoints.llm:LLM",
    "ENGINES[0]": "vllm.entrypoints.llm:LLM",
    "llm.llm_engine.engine_core": "vllm.v1.engine.core_client:InprocClient",
    "core.scheduler": "vllm.v1.core.sched.scheduler:Scheduler",
    "output": "vllm.outputs:RequestOutput",
    "output.outputs[0]": "vllm.outputs:CompletionOutput",
    "answer": "vllm.outputs:CompletionOutput",
    "metadata": METADATA,
    "self.slices[0].metadata": METADATA,
    "attention.impl": "vllm.v1.attention.backends.cpu_attn:CPUAttentionBackendImpl",
}
PROTOCOLS = {"PLTForCausalLM": "vllm.model_executor.models.interfaces_base:VllmModelForTextGeneration"}
CALLED = {  # methods that no class of vLLM declares, and the module that calls them
    "load_weights": "vllm.model_executor.model_loader.default_loader",
    "get_mamba_state_dtype_from_config": "vllm.platforms.interface",
    "lora_manager": "vllm.lora.model_manager",
}
OPTIONS = [  # the classes whose fields are the server's options; one of them is in another place since 0.33
    ENGINE_ARGS,
    "vllm.entrypoints.launchers.cli_args:FrontendArgs",
    "vllm.entrypoints.common.cli_args:FrontendArgs",
]


class Uses:
    """Of one file.

    Attributes:
        complaints: what this vLLM does not have, a sentence each.
        seen: what it has: names, `class.member`, `function()` for what a call gives it, keywords, variables.
        overrides: methods and attributes of the file's classes that vLLM's classes have, too.
        told: which of `OBJECTS` were asked for.
    """

    def __init__(self, path: Path, sources: Sources):
        self.path, self.sources = path, sources
        self.complaints: list[str] = []
        self.seen, self.overrides, self.told = set(), set(), set()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.names = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.read_import(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.read_string(node)
        self.names = self.assigned([each for each in self.tree.body if isinstance(each, ast.Assign)], self.names)
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                self.check_class(node)
            else:
                self.check_body(node, self.names)

    def note(self, node: ast.AST, found: object, what: str) -> None:
        if found:
            self.seen.add(what)
        else:
            self.complaints.append(f"{self.path.parent.name}/{self.path.name}:{node.lineno} vLLM has no {what}.")

    def known(self, node: ast.AST, place: str) -> Definition | None:
        """A class by `module:name`."""
        found = self.sources.find(*place.split(":"))
        if found is None:
            self.note(node, found, place)
        return found

    # names

    def read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            module = alias.name if isinstance(node, ast.Import) else node.module or ""
            if module.split(".")[0] != "vllm":
                continue
            name = alias.asname or alias.name.split(".")[0]
            if isinstance(node, ast.Import):
                found = self.sources.as_module(name)
            else:
                found = self.sources.find(module, alias.name)
            self.note(node, found, f"{module}:{alias.name}")
            if found is not None:
                self.names[name] = self.sources.type_of(found) or found

    def read_string(self, node: ast.Constant) -> None:
        """An operator, a module or a name in one, or a variable of the environment."""
        if operator := re.fullmatch(r"vllm\.(\w+)\.default", node.value):
            self.note(node, self.operator(operator[1]), f"operator {operator[1]}")
        elif re.fullmatch(r"vllm(\.\w+)+", node.value) and not node.value.endswith("_plugins"):
            found = self.sources.tree(node.value) or self.sources.find(*node.value.rsplit(".", 1))
            self.note(node, found, f"module {node.value}")
        elif re.fullmatch(r"VLLM_[A-Z0-9_]+", node.value):
            self.note(node, node.value in strings(self.sources.tree("vllm.envs")), f"variable {node.value}")

    # what an expression is

    def infer(self, node: ast.AST, scope: dict) -> Definition | None:
        text = ast.unparse(node)
        if text in scope:
            return scope[text]
        if text in OBJECTS:
            self.told.add(text)
            return as_object(self.known(node, OBJECTS[text]))
        match node:
            case ast.Attribute(value=value, attr=name):
                owner = self.infer(value, scope)
                found = None if owner is None or not has_members(owner) else self.sources.attribute(owner, name)
                is_value = found is not None and owner.is_object
                return self.sources.type_of(found) or found if is_value else found
            case ast.Call(func=function):
                own = scope.get(f"{ast.unparse(function)}()")
                return own or self.sources.returned(self.infer(function, scope))
            case ast.IfExp(body=body, orelse=otherwise):
                return self.infer(body, scope) or self.infer(otherwise, scope)
        return None

    def assigned(self, nodes: list[ast.AST], scope: dict) -> dict:
        """What arguments and variables are, as far as they are vLLM's; a function's result as `name()`."""
        scope, every = dict(scope), [each for node in nodes for each in ast.walk(node)]
        for each in every:
            if isinstance(each, FUNCTION):
                arguments = {argument.arg: argument.annotation for argument in each.args.args + each.args.kwonlyargs}
                for name, annotation in (arguments | {f"{each.name}()": each.returns}).items():
                    scope.pop(name, None)
                    found = self.annotated(annotation)
                    scope |= {name: found} if found else {}
        for each in sorted((each for each in every if isinstance(each, ast.Assign)), key=lambda each: each.lineno):
            for target, value in pairs(each):
                text, found = ast.unparse(target), self.infer(value, scope)
                scope[text] = found or scope.get(text)
        return scope

    def annotated(self, annotation: ast.AST | None) -> Definition | None:
        match annotation:
            case ast.Constant(value=str(text)):
                return self.annotated(ast.parse(text, mode="eval").body)
            case ast.Name(id=name):
                return as_object(self.names.get(name))
            case ast.BinOp(left=left, op=ast.BitOr(), right=ast.Constant(value=None)):
                return self.annotated(left)
        return None

    # what a function does

    def check_body(self, node: ast.AST, scope: dict) -> None:
        scope = self.assigned([node], scope)
        for each in ast.walk(node):
            if isinstance(each, ast.Attribute):
                self.check_attribute(each, scope)
            elif isinstance(each, ast.Call):
                self.check_call(each, scope)

    def check_attribute(self, node: ast.Attribute, scope: dict) -> None:
        owner = self.infer(node.value, scope)
        if ast.unparse(node.value) == "torch.ops.vllm":
            self.note(node, self.operator(node.attr), f"operator {node.attr}")
        elif owner is not None and has_members(owner):
            self.note(node, self.sources.attribute(owner, node.attr), f"{owner}.{node.attr}")

    def operator(self, name: str) -> bool:
        """Whether vLLM registers one; those that the plugin asks for are attention's."""
        return f'op_name="{name}"' in self.sources.read("vllm/model_executor/layers/attention/attention.py")

    def check_call(self, node: ast.Call, scope: dict) -> None:
        name, function = ast.unparse(node.func), self.infer(node.func, scope)
        signature = None if function is None else self.signature(node.func, function, scope)
        splats = [self.keys(keyword.value) for keyword in node.keywords if keyword.arg is None]
        keywords = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
        keywords += [key for keys in splats for key in keys or ()]
        if signature is not None:
            known = {each.name for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD}
            positional = [each for each in node.args if not isinstance(each, ast.Starred)]
            is_partial = len(positional) < len(node.args) or None in splats
            try:
                given = dict.fromkeys(each for each in keywords if each in known)
                (signature.bind_partial if is_partial else signature.bind)(*positional, **given)
                self.seen.add(f"{function}()")
            except TypeError as error:
                self.note(node, None, f"{name} for this call: {error}")
            keywords = [each for each in keywords if each not in known]
        if name in REST:
            takes = self.known(node, REST[name])
            for each in keywords:
                self.note(node, takes and self.sources.member(takes, each), f"argument {each} of {name}")
        elif signature is not None:
            for each in keywords:
                self.note(node, None, f"argument {each} of {name}")

    def signature(self, node: ast.AST, function: Definition, scope: dict):  # noqa: ANN201
        if function.is_object:  # a module of torch, whose call is `forward`
            forward = self.sources.member(function, "forward_native") or self.sources.member(function, "forward")
            return None if forward is None else self.sources.signature(forward, is_bound=True)
        owner = self.infer(node.value, scope) if isinstance(node, ast.Attribute) else None
        decorators = texts(getattr(function.node, "decorator_list", []))
        is_bound = owner is not None and (owner.is_object or "classmethod" in decorators)
        return self.sources.signature(function, is_bound and "staticmethod" not in decorators)

    def keys(self, node: ast.AST) -> list[str] | None:
        """Of a dictionary that this file writes down, or of a union with one; None where it does not."""
        match node:
            case ast.Dict(keys=keys):
                return [key.value for key in keys if isinstance(key, ast.Constant)]
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                return [key for part in (left, right) for key in self.keys(part) or ()]
            case ast.Name(id=name):
                every = [each for each in ast.walk(self.tree) if isinstance(each, ast.Assign)]
                values = [each.value for each in every if name in targets(each)]
                return self.keys(values[0]) if len(values) == 1 and isinstance(values[0], ast.Dict) else None
        return None

    # what vLLM calls

    def check_class(self, node: ast.ClassDef) -> None:
        """Its functions, each with what the others give to `self`; and what vLLM wants of it."""
        functions = [part for part in node.body if isinstance(part, FUNCTION)]
        scopes = [self.assigned([part], self.names) for part in functions]
        own = {text: found for scope in scopes for text, found in scope.items() if found and text.startswith("self.")}
        for part in [*node.body, *map(ast.Expr, node.decorator_list)]:
            self.check_body(part, self.names | own)
        bases = [found for base in node.bases if (found := self.names.get(ast.unparse(base)))]
        if node.name in PROTOCOLS:
            bases += filter(None, [self.known(node, PROTOCOLS[node.name])])
        ours = {part.name: part for part in functions}
        attributes = {text for part in ast.walk(node) if isinstance(part, ast.Assign) for text in targets(part)}
        names = ours.keys() | {text.removeprefix("self.") for text in attributes}
        for base in bases:
            for name in names - {"__init__"}:
                self.check_override(node, ours.get(name), name, self.sources.member(base, name))
            for name in self.demanded(base) - names:
                self.note(node, None, f"{base} without {name}, which {node.name} lacks")
        for name in bases and ours.keys() & CALLED.keys():
            tree = self.sources.tree(CALLED[name])
            calls = [each for each in ast.walk(tree) if isinstance(each, ast.Attribute)] if tree else []
            self.note(node, name in {each.attr for each in calls}, f"call of {name} in {CALLED[name]}")

    def check_override(self, node: ast.ClassDef, ours: FUNCTION | None, name: str, theirs: Definition | None) -> None:
        if theirs is None or theirs.node is None:
            return
        self.overrides.add(f"{node.name}.{name}")
        if ours is not None and isinstance(theirs.node, FUNCTION):
            wanted, given = (
                [each.arg for each in part.args.args + part.args.kwonlyargs] for part in (theirs.node, ours)
            )
            takes_all = ours.args.vararg is not None and ours.args.kwarg is not None
            for each in () if takes_all else set(wanted) - {*given, "self", "cls"}:
                self.note(ours, None, f"{node.name}.{name} without the argument {each}")

    def demanded(self, base: Definition) -> set[str]:
        """Abstract methods of a class that none in between defines."""
        found, done = set(), set()
        for each in self.sources.lineage(base):
            for part in each.node.body if each.is_class else ():
                if isinstance(part, FUNCTION) and part.name not in done:
                    done.add(part.name)
                    is_abstract = any(one.endswith("abstractmethod") for one in texts(part.decorator_list))
                    found |= {part.name} if is_abstract else set()
        return found


def pairs(node: ast.Assign) -> list[tuple[ast.AST, ast.AST]]:
    """What is given a value, and the value."""
    every = [(target, node.value) for target in node.targets]
    is_pair = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
    return list(zip(node.targets[0].elts, node.value.elts, strict=False)) if is_pair else every


def has_members(owner: Definition) -> bool:
    return owner.is_class or isinstance(owner.node, ast.Module)


def lacking_flags(text: str, own: set[str], sources: Sources) -> set[str]:
    """Options of commands in a text that are neither ours nor the server's."""
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+[a-z]", text)) - own
    places = [found for place in OPTIONS if (found := sources.find(*place.split(":")))]
    names = {flag: flag[2:].removeprefix("no-").replace("-", "_") for flag in flags}
    return {flag for flag, name in names.items() if not any(sources.member(each, name) for each in places)}
