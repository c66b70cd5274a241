"""Which rows of a step a pruned layer runs, and the metadata that its builder makes of a step, without an engine."""

from types import SimpleNamespace

import pytest
import torch
from engines import OPTIONS, save_tiny
from test_carry import common
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import SlidingWindowSpec
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

from modeling_plt.passes_plt import needed_positions
from serving_plt.vllm.configs import ServedConfig
from serving_plt.vllm.model_state import PLTModelState
from serving_plt.vllm.pruning import WindowManager, WindowSpec, kept_of, parts_of, pruned, select, shortened, whole

REACH = 5


@pytest.mark.parametrize(
    "lengths", [[1, 1], [7], [5], [4], [1, 9, 5, 3, 12], [1, 0, 9, 0]], ids=lambda lengths: "-".join(map(str, lengths))
)
def test_the_last_rows_of_each_request_are_kept(lengths):
    """Against a list that is built row by row."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    expected = [
        (int(ends[request]) + place, request, place == 0)
        for request, length in enumerate(lengths)
        for place in range(length)
        if length - place <= REACH
    ]
    (rows, firsts, requests), new_ends = kept_of(ends, REACH)
    assert rows.tolist() == [row for row, _, _ in expected]
    places = [place for place, (_, _, is_first) in enumerate(expected) if is_first]
    assert firsts.tolist() == places
    assert requests.tolist() == [expected[place][1] for place in places]
    assert new_ends.diff().tolist() == [min(length, REACH) for length in lengths]
    assert new_ends.dtype == ends.dtype


def test_rows_are_found_among_others():
    states, among = torch.arange(20.0)[:, None], torch.tensor([2, 3, 5, 11, 19])
    assert select(states, None, None) is states
    for rows in (among, torch.tensor([3, 11])):
        assert torch.equal(select(states, rows, None)[:, 0], rows.float())
        assert torch.equal(select(states[among], rows.clone(), among)[:, 0], rows.float())


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_tiny(folder, num_loops=3)
    return EngineArgs(model=str(folder), **OPTIONS | {"kv_sharing_fast_prefill": True}).create_engine_config()


@pytest.mark.parametrize(("layers", "parts"), [(1, 1), (3, 3), (4, 4), (5, 3), (14, 4), (16, 4)])
def test_parts_reach_as_far_as_their_first_layer(layers, parts, settings):
    config = ServedConfig(num_hidden_layers=layers, num_loops=3, sliding_window=4)
    (needed,) = needed_positions(config, OPTIONS["max_model_len"], 1)
    for loop_idx in (1, 2):
        found = parts_of(config, settings, loop_idx)
        assert [layer for part in found for layer in part.layers] == list(range(layers))
        assert [part.reach for part in found] == [needed[loop_idx][part.layers.start] for part in found]
        assert len(found) == parts
    assert [part.reach for part in parts_of(config, settings, 0)] == [None]


def builder(backend, settings):
    """Of a window of 4, as vLLM makes it for layers that are not there."""
    spec = SlidingWindowSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32, sliding_window=4)
    return backend.get_builder_cls()(spec, [], settings, torch.device("cpu"))


def test_metadata_of_a_prompt_are_of_its_last_rows(settings):
    step = common([1, 9, 3], [40, 0, 7], [1, 2, 3])
    step = step.replace(slot_mapping=torch.arange(100, 113), positions=torch.arange(13))
    step.compute_num_computed_tokens()  # which the usual builder leaves in what is shared
    metadata = builder(pruned(CPUAttentionBackend, REACH), settings).build(0, step)
    assert metadata.kept.rows.tolist() == [0, 5, 6, 7, 8, 9, 10, 11, 12]
    assert metadata.slot_mapping.tolist() == [100, *range(105, 113)]
    assert metadata.query_start_loc.tolist() == [0, 1, 6, 9]
    assert (metadata.num_actual_tokens, metadata.max_query_len) == (9, REACH)
    assert metadata.seq_lens is step.seq_lens and metadata.block_table is step.block_table_tensor
    short, _ = shortened(step, REACH)
    assert short.compute_num_computed_tokens().tolist() == [40, 4, 7]
    assert short.positions.tolist() == metadata.kept.rows.tolist()


@pytest.mark.parametrize("lengths", [[1, 1, 1], [5, 1, 2]], ids=["decodes", "short prompts"])
def test_metadata_of_a_step_that_needs_all_rows_are_the_usual_ones(lengths, settings):
    """So what a graph of steps that decode has captured is what it is replayed with."""
    step = common(lengths, [40, 5, 7], [1, 2, 3])
    assert shortened(step, REACH) == (step, None)
    ours, usual = (builder(each, settings) for each in (pruned(CPUAttentionBackend, REACH), CPUAttentionBackend))
    for build in ("build", "build_for_cudagraph_capture"):
        arguments = (0, step) if build == "build" else (step,)
        given, expected = getattr(ours, build)(*arguments), getattr(usual, build)(*arguments)
        assert given.kept is None
        for name in ("query_start_loc", "seq_lens", "block_table", "slot_mapping"):
            assert getattr(given, name) is getattr(expected, name), name


@pytest.mark.parametrize("backend", [CPUAttentionBackend, FlashAttentionBackend, TritonAttentionBackend])
def test_a_pruned_backend_is_the_usual_one_but_for_rows_and_writes(backend, monkeypatch):
    """Of a layer with a window of its own, it writes the keys of its rows; of one without keys, nothing."""
    ours = pruned(backend, REACH)
    assert pruned(backend, REACH) is ours and pruned(backend, REACH + 1).full_cls_name() != ours.full_cls_name()
    assert ours.get_name() == backend.get_name()
    assert ours.forward_includes_kv_cache_update and not backend.forward_includes_kv_cache_update
    assert not ours.get_builder_cls().supports_update_block_table
    usual, calls = backend.get_impl_cls(), []
    monkeypatch.setattr(usual, "do_kv_cache_update", lambda self, *arguments: calls.append(("write", *arguments)))
    monkeypatch.setattr(usual, "forward", lambda self, *arguments, **more: calls.append(("read", *arguments, more)))
    impl, metadata = object.__new__(ours.get_impl_cls()), SimpleNamespace(slot_mapping="slots of rows")
    impl.forward("layer", "query", "key", "value", "cache", metadata, output="output")
    impl.forward("layer", "query", None, None, "cache", metadata, output="output")
    impl.forward("layer", "query", "key", "value", "cache", None, output="output")
    assert calls == [
        ("write", "layer", "key", "value", "cache", "slots of rows"),
        ("read", "layer", "query", "key", "value", "cache", metadata, {"output": "output"}),
        ("read", "layer", "query", None, None, "cache", metadata, {"output": "output"}),
        ("read", "layer", "query", "key", "value", "cache", None, {"output": "output"}),
    ]


@pytest.mark.parametrize(
    ("window", "interval", "kept"),
    [(4, None, [0, 0, 0, 1]), (34, None, [0, 0, 1, 1]), (4, 0, [0, 0, 0, 0]), (1, None, [0, 0, 0, 0])],
)
def test_blocks_before_the_end_of_a_step_are_not_offered(window, interval, kept):
    """Of four that a step has filled, which vLLM would offer all, those that the step's end needs."""
    spec = WindowSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32, sliding_window=window)
    assert WindowManager.reachable_block_mask(2, 6, 32, spec, False, interval) == [bool(each) for each in kept]


@pytest.mark.parametrize(
    ("params", "is_wanted"),
    [
        (None, False),
        ({"prompt_logprobs": None, "prompt_logprob_token_ids": None}, False),
        ({"prompt_logprobs": 0, "prompt_logprob_token_ids": None}, True),
        ({"prompt_logprobs": None, "prompt_logprob_token_ids": [[1]]}, True),
    ],
    ids=["pooling", "none", "of the prompt's tokens", "of tokens"],
)
def test_the_second_runner_prunes_no_step_whose_prompts_are_wanted(params, is_wanted, monkeypatch):
    """Of steps with a request for log probabilities of its prompt in them, and not once it is gone."""
    step, states = common([9], [0], [1]), object.__new__(PLTModelState)
    states.want_prompts = set()
    for name in ("add_request", "remove_request"):
        monkeypatch.setattr(MambaHybridModelState, name, lambda self, *arguments: None)
    monkeypatch.setattr(MambaHybridModelState, "prepare_attn", lambda self, batch: shortened(step, REACH)[1])
    asked = None if params is None else SimpleNamespace(**params)
    states.add_request(0, SimpleNamespace(req_id="asks", sampling_params=asked))
    assert (states.prepare_attn(SimpleNamespace(req_ids=["other", "asks"])) is None) == is_wanted
    assert states.prepare_attn(SimpleNamespace(req_ids=["other"])) is not None
    states.remove_request("asks")
    assert states.prepare_attn(SimpleNamespace(req_ids=["other", "asks"])) is not None
    with pytest.raises(RuntimeError), whole(True):
        raise RuntimeError
    assert shortened(step, REACH)[1] is not None
