"""With vLLM's compiler, which is off elsewhere in these tests: each loop is one graph, and so are all in one pass."""

import copy

import pytest
import torch
from engines import engine, generated, random_prompts, save_tiny, served
from tiny import EXPERTS
from torch._dynamo.backends.common import aot_autograd
from vllm.compilation.backends import SplitItem, split_graph
from vllm.config import CompilationConfig, CompilationMode

from serving_plt.vllm.loops import AllLoops, OneLoop

LAYERS = 3  # that loop
CORE = {"num_hidden_layers": 5, "num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 2, "hidden_size": 64}


def check_compiled(folder, **fields) -> tuple[list[bool], list[bool]]:
    """Answers are those of `generate`; whether each graph is compiled when the engine has started, and at the end."""
    model, prompts = save_tiny(folder, **fields), random_prompts()
    with engine(folder, enforce_eager=False) as llm:
        assert llm.llm_engine.vllm_config.compilation_config.mode == CompilationMode.DYNAMO_TRACE_ONCE
        (parts,) = llm.apply_model(lambda model: [*model.modules()])
        parts = [part for part in parts if isinstance(part, OneLoop | AllLoops)]
        started = [part.compiled for part in parts]
        assert served(llm, prompts) == generated(model, prompts)
        assert served(llm, prompts[3:4]) == generated(model, prompts[3:4])  # one row, where it was traced with many
        return started, [part.compiled for part in parts]


def test_all_is_compiled_before_the_first_request(tmp_path):
    """By inductor; with one layer, because it takes seconds for each call of one."""
    started, _ = check_compiled(tmp_path, num_loops=2, num_hidden_layers=1)
    assert started == [True] * 3


@pytest.mark.parametrize(
    ("fields", "writes"),
    [
        ({"num_loops": 3, "gate_input": "query", "loop_norm": False, "learned_scales": True}, [3, 3, 3, 9]),
        ({"num_loops": 2, "loop_shift": False, "loop_attention": "own"}, [3, 3]),
        (EXPERTS | CORE | {"mlp_only_layers": [1, 3]}, [1, 3, 3, 1, 6]),
    ],
    ids=["plt", "vanilla loop", "experts between a prelude and a coda"],
)
def test_other_models_are_traced_as_whole_graphs(fields, writes, tmp_path, monkeypatch):
    """Of loops in turn and between prelude and coda, then of all loops at once, each with its writes to the cache."""
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")  # vLLM then runs what it has traced as it is, from the first request on
    graphs, cuts = [], []
    default = CompilationConfig(mode=CompilationMode.VLLM_COMPILE)
    default.set_splitting_ops_for_v1("")

    def record(graph, inputs):
        graphs.append(graph.graph)
        return graph.forward

    # with inductor's first steps, after which what an operator writes to is an edge of the graph
    backend = aot_autograd(fw_compiler=record, inference_compiler=record)

    def cut(graph, inputs):
        cuts.append(split_graph(copy.deepcopy(graph), default.splitting_ops)[1])
        return backend(graph, inputs)

    monkeypatch.setattr(CompilationConfig, "init_backend", lambda *_, **__: cut)
    _, ended = check_compiled(tmp_path, **fields)
    assert ended == [True] * len(writes)
    assert [len(writes_in(graph)) for graph in graphs] == writes
    assert len(cuts) == len(writes)
    for graph in graphs:
        if len(writes_in(graph)) > LAYERS:
            check_that_writes_come_first(graph)
    for pieces in cuts:
        check_pieces(pieces)


def writes_in(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    return {node for node in graph.nodes if "unified_kv_cache_update" in str(node.target)}


def check_that_writes_come_first(graph: torch.fx.Graph) -> None:
    """Of all loops at once, where a compiler may order anew: loop 0's before a read that has no write of its own."""
    writes = writes_in(graph)
    reads = [node for node in graph.nodes if "unified_attention_with_output" in str((node.target, node.args))]
    for read in reads:
        handed = read.kwargs["kv_cache_dummy_dep"]
        assert handed in writes or len(writes & ancestors_of(read)) >= LAYERS, read.format_node()


def check_pieces(pieces: list[SplitItem]) -> None:
    """Where vLLM cuts a graph, as it does on a GPU: what it calls as it is, and what it compiles.

    The first is a read of keys and the write before it, if it has one. Of the second an input of L * T rows is not
    enough: some input must have T itself, because inductor takes it from there.
    """
    assert any(piece.is_splitting_graph for piece in pieces)
    for piece in pieces:
        nodes = piece.graph.graph.nodes
        if piece.is_splitting_graph:
            called = [str(node.target).removeprefix("vllm.") for node in nodes if node.op.startswith("call")]
            assert called[-1] == "unified_attention_with_output"
            assert called[:-1] in ([], ["unified_kv_cache_update"])
            continue
        inputs = [node.meta["example_value"] for node in nodes if node.op == "placeholder"]
        sizes = {
            size.node.expr
            for each in inputs
            if isinstance(each, torch.Tensor)
            for size in each.shape
            if isinstance(size, torch.SymInt)
        }
        assert {symbol for size in sizes for symbol in size.free_symbols} <= sizes, piece.submod_name


def ancestors_of(node: torch.fx.Node) -> set[torch.fx.Node]:
    found, waiting = set(), [node]
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found
