"""The carry in steps that a CPU never has, of CUDA graphs and dummy runs, with metadata that vLLM's functions make."""

from types import SimpleNamespace

import pytest
import torch
from engines import BLOCK, OPTIONS, save_tiny
from recorded import Graph, NoHostData
from vllm.config import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec, KVCacheTensor
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.worker.utils import allocate_kv_cache

from serving_plt.vllm.carry import Carry
from serving_plt.vllm.configs import ServedConfig
from serving_plt.vllm.groups import num_slices

PAGES, ROWS = 9, 4  # ROWS of the graph


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    save_tiny(folder, num_loops=3)
    settings = EngineArgs(model=str(folder), **OPTIONS).create_engine_config()
    settings.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY  # on a CPU it is NONE
    return settings


@pytest.fixture(params=[KVCacheLayout.LBNHC, KVCacheLayout.BLHNC], ids=lambda layout: layout.name)
def carry(settings, request):
    """With what requests left in every page but the null block, which is page 0.

    The pages lie where vLLM's function, which both of its runners call, places them: those of a slice beside each
    other, or those of a block.
    """
    settings.compilation_config.static_forward_context.clear()
    carry = Carry(settings.model_config.hf_config, settings, "model")
    settings.cache_config.mamba_page_size_padded = page = 1 << 10
    group = KVCacheGroupSpec([each.prefix for each in carry.slices], carry.slices[0].get_kv_cache_spec(settings))
    of_slice, of_block = PAGES * page, len(carry.slices) * page
    layer_stride, block_stride = (page, of_block) if request.param.is_block_outermost else (of_slice, page)
    tensor = KVCacheTensor(PAGES * of_block, group.layer_names, layer_stride, block_stride)
    caches = allocate_kv_cache(KVCacheConfig(PAGES, [tensor], [group]), torch.device("cpu"), request.param)
    generator = torch.Generator().manual_seed(0)
    for each in carry.slices:
        each.bind_kv_cache(caches[each.prefix])
        each.kv_cache[0][1:] = torch.randn(PAGES - 1, 1, each.size, generator=generator)
    return carry


@pytest.fixture
def builder(carry, settings):
    spec = carry.slices[0].get_kv_cache_spec(settings)
    return carry.slices[0].get_attn_backend().get_builder_cls()(spec, [], settings, torch.device("cpu"))


def common(lengths: list[int], seen: list[int], pages: list[int]) -> CommonAttentionMetadata:
    """Of requests with new tokens, tokens before them, and a page each; a row that fills a graph has none of all."""
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    totals = (torch.tensor(lengths) + torch.tensor(seen)).int()
    return CommonAttentionMetadata(
        query_start_loc=ends,
        query_start_loc_cpu=ends,
        seq_lens=totals,
        seq_lens_cpu_upper_bound=totals,
        num_reqs=len(lengths),
        num_actual_tokens=sum(lengths),
        max_query_len=max(lengths),
        max_seq_len=int(totals.max()),
        block_table_tensor=torch.tensor(pages).int()[:, None].repeat(1, 8),
        slot_mapping=torch.zeros(sum(lengths), dtype=torch.long),
        is_prefilling=torch.tensor(lengths) > 1,
    )


def step_of(carry: Carry, metadata, settings):
    every = {each.prefix: metadata for each in carry.slices}
    return set_forward_context(every, settings, num_tokens=ROWS, slot_mapping={})


def shift(carry: Carry, embeds: torch.Tensor) -> torch.Tensor:
    """A step of a model whose loops add the embedding to what they carry."""
    carried = carry.read(embeds)
    carry.write(carried + embeds)
    return carried


@pytest.mark.parametrize(
    "lengths, seen", [([1, 1, 1], [5, 40, 7]), ([1, 1, 6, 2], [5, 40, 0, 9])], ids=["decode", "mixed"]
)
def test_a_step_makes_no_tensor_of_python_numbers(lengths, seen, carry, builder, settings):
    metadata = builder.build(0, common(lengths, seen, [1, 2, 3, 4][: len(lengths)]))
    assert metadata.num_decodes == lengths.count(1)
    with step_of(carry, metadata, settings), NoHostData() as seen_operators:
        shift(carry, torch.ones(sum(lengths), 56))
    assert "aten.index_put_.default" in seen_operators.names


def test_a_carry_is_kept_inside_a_prompt_where_its_last_full_block_ends(carry, builder, settings, monkeypatch):
    """After a request that decodes, of prompts of 70, 20 and 40 tokens, of which the second has no full block."""
    for name in ("hash_block_size", "cache_hit_alignment_tokens"):
        monkeypatch.setattr(settings.cache_config, name, BLOCK)
    pages = torch.tensor([[1, 0, 0], [0, 2, 3], [4, 0, 0], [5, 6, 0]]).int()  # for each block of a request
    step = common([1, 70, 20, 40], [5, 0, 0, 0], [0] * 4).replace(block_table_tensor=pages)
    before, states = carry.pages.clone(), torch.randn(2, 131, 56)
    with step_of(carry, builder.build(0, step), settings):
        carry.write(states)
    after, row_of_page = carry.pages.flatten(1)[:, : 2 * 56], {1: 0, 3: 70, 2: 64, 4: 90, 6: 130, 5: 122}
    for page, row in row_of_page.items():
        assert torch.equal(after[page], states[:, row].flatten())
    assert torch.equal(carry.pages[[7, 8]], before[[7, 8]]) and not carry.pages[0].any()


@pytest.fixture
def most_drafts(settings, monkeypatch) -> int:
    """Of a request in a step; before there is a builder."""
    speculative = SimpleNamespace(num_speculative_tokens=2, parallel_drafting=False)
    monkeypatch.setattr(settings, "speculative_config", speculative)
    monkeypatch.setattr(settings.cache_config, "mamba_cache_mode", "none")
    return settings.num_speculative_tokens


def kept_of(carry: Carry, states: torch.Tensor) -> torch.Tensor:
    """What requests carry at the beginning of a step whose states are kept."""
    before, (rows, slots) = carry.of_requests(), carry.places()
    carry.keep(states[:, rows].transpose(0, 1), slots)
    return before


PAGES_OF_DRAFTS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 0], [0, 0, 0]]).int()


def with_drafts(lengths: list[int], ends: torch.Tensor | None = None) -> CommonAttentionMetadata:
    """Of requests that decode, in a step whose `ends` lie where they lay in the step before."""
    made = common(lengths, [5] * len(lengths), [0] * len(lengths))
    decoding = torch.zeros(len(lengths), dtype=torch.bool)
    pages = PAGES_OF_DRAFTS[: len(lengths)] * (torch.tensor(lengths) > 0)[:, None]
    made = made.replace(block_table_tensor=pages, is_prefilling=decoding)
    return made if ends is None else made.replace(query_start_loc=ends.copy_(made.query_start_loc))


def test_a_request_with_drafts_goes_on_from_the_last_that_was_accepted(most_drafts, carry, builder, settings):
    """After a step in which three requests had two drafts, none and one."""
    assert most_drafts == 2
    old, states = carry.pages.flatten(1)[:, : 2 * 56].clone(), torch.randn(2, 6, 56)
    step = builder.build(0, with_drafts([3, 1, 2]), num_accepted_tokens=torch.tensor([1, 2, 2]).int())
    with step_of(carry, step, settings):
        assert not carry.is_decoding
        assert torch.equal(kept_of(carry, states).flatten(1), old[[1, 5, 8]])
    row_of_page, new = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4, 8: 5}, carry.pages.flatten(1)[:, : 2 * 56]
    for page, row in row_of_page.items():
        assert torch.equal(new[page], states[:, row].flatten())
    assert torch.equal(new[5:7], old[5:7]) and not carry.pages[0].any()

    step = builder.build(0, with_drafts([1, 1, 1]), num_accepted_tokens=torch.tensor([3, 1, 2]).int())
    with step_of(carry, step, settings):
        assert carry.is_decoding
        expected = states[:, [2, 3, 5]]
        assert torch.equal(shift(carry, torch.ones(3, 56)), expected)
    assert torch.equal(carry.pages.flatten(1)[[1, 4, 7], : 2 * 56], (expected + 1).transpose(0, 1).flatten(1))


def test_of_several_tokens_without_drafts_the_last_is_carried(most_drafts, carry, builder, settings):
    """As of a request that was preempted, which vLLM's V1 runner takes for one that decodes; others have drafts."""
    old, states = carry.pages.flatten(1)[:, : 2 * 56].clone(), torch.randn(2, 6, 56)
    drafts, accepted = torch.tensor([2, -1, 0]).int(), torch.tensor([2, 1, 1]).int()
    step = builder.build(0, with_drafts([3, 2, 1]), num_accepted_tokens=accepted, num_decode_draft_tokens_cpu=drafts)
    assert step.num_decodes == 3
    with step_of(carry, step, settings):
        assert torch.equal(kept_of(carry, states).flatten(1), old[[2, 4, 7]])
    row_of_page, new = {1: 0, 2: 1, 3: 2, 4: 4, 7: 5}, carry.pages.flatten(1)[:, : 2 * 56]
    for page, row in row_of_page.items():
        assert torch.equal(new[page], states[:, row].flatten())
    assert torch.equal(new[[5, 6, 8]], old[[5, 6, 8]]) and not carry.pages[0].any()


def test_a_graph_of_steps_with_drafts_leaves_out_the_rows_that_fill_it(most_drafts, carry, builder, settings):
    """Captured as vLLM does, for four requests of three tokens each, and replayed for two."""
    lengths, states, graph = [1 + most_drafts] * ROWS, torch.randn(2, 12, 56), Graph()
    captured = with_drafts(lengths).replace(block_table_tensor=torch.zeros(ROWS, 3, dtype=torch.int32))
    with step_of(carry, builder.build_for_cudagraph_capture(captured), settings), graph, NoHostData():
        assert not carry.is_decoding
        before = kept_of(carry, states)
    old = carry.pages.flatten(1)[:, : 2 * 56].clone()
    states.normal_()
    accepted = torch.tensor([2, 3, 1, 1]).int()
    builder.build(0, with_drafts([3, 3, 0, 0], captured.query_start_loc), num_accepted_tokens=accepted)
    graph.replay()
    new = carry.pages.flatten(1)[:, : 2 * 56]
    assert torch.equal(before.flatten(1), torch.cat((old[[2, 6]], torch.zeros(2, 2 * 56))))
    assert torch.equal(new[1:7], states[:, :6].transpose(0, 1).flatten(1))
    assert torch.equal(new[7:], old[7:]) and not carry.pages[0].any()


@pytest.mark.parametrize("null_block", [0.0, float("nan")])
def test_rows_that_fill_a_graph_read_and_leave_zeros(null_block, carry, builder, settings):
    """The graph is captured as vLLM does, with requests that have no page, and replayed for two in pages 3 and 7."""
    embeds, graph = torch.zeros(ROWS, 56), Graph()
    captured = builder.build_for_cudagraph_capture(common([1] * ROWS, [0] * ROWS, [0] * ROWS))
    with step_of(carry, captured, settings), graph:
        carried = shift(carry, embeds)

    before = [each.kv_cache[0].clone() for each in carry.slices]
    for each in carry.slices:
        each.kv_cache[0][0] = null_block
    with step_of(carry, builder.build(0, common([1, 1], [5, 40], [3, 7])), settings):
        expected = carry.read(torch.zeros(2, 56))
    builder.build(0, common([1, 1, 0, 0], [5, 40, 0, 0], [3, 7, 0, 0]))
    embeds[:2], embeds[2:] = torch.randn(2, 56), float("nan")
    graph.replay()

    assert torch.equal(carried[:, :2], expected) and expected.abs().min() > 0
    assert torch.equal(carried[:, 2:], torch.zeros(2, 2, 56))
    with step_of(carry, builder.build(0, common([1, 1], [5, 40], [3, 7])), settings):
        assert torch.equal(carry.read(torch.zeros(2, 56)), expected + embeds[:2])
    for each, old in zip(carry.slices, before, strict=True):
        assert torch.equal(each.kv_cache[0][0], torch.zeros(1, each.size))
        others = [page for page in range(1, PAGES) if page not in (3, 7)]
        assert torch.equal(each.kv_cache[0][others], old[others])


def test_a_step_without_requests_reads_zeros_and_leaves_nothing(carry, settings):
    """Of two kinds: one that measures has no metadata at all, one that tunes kernels has that of attention."""
    before = [each.kv_cache[0].clone() for each in carry.slices]
    for every in (None, {"model.layers.0.self_attn.attn": object()}):
        with set_forward_context(every, settings, num_tokens=ROWS, slot_mapping={}):
            assert not carry.is_decoding
            assert not carry.read(torch.ones(ROWS, 56)).any()
            carry.write(torch.ones(2, ROWS, 56))
    assert all(torch.equal(each.kv_cache[0], old) for each, old in zip(carry.slices, before, strict=True))


def test_slices_that_lie_elsewhere_are_refused(carry):
    carry.slices[1].kv_cache = (torch.zeros(PAGES, 1, carry.slices[1].size),)
    with pytest.raises(RuntimeError, match="vLLM must place the slices of a carry at equal distances, got addresses"):
        carry.pages  # noqa: B018, a property


@pytest.mark.parametrize(
    ("layers", "prelude", "coda", "loops", "slices"),
    [
        (14, 0, 0, 2, 14),  # LoopCoder-V2: groups of 14 layers with all keys, and with windows
        (16, 0, 0, 3, 16),
        (8, 2, 2, 4, 4),  # 8 layers with all keys, 3 * 4 windows
        (30, 1, 2, 2, 27),  # 30 and 27: vLLM makes groups of 30, of which 3 places are empty
        (30, 4, 4, 2, 11),  # 30 and 22: in groups of 11, 3 places are empty; of 30 there would be 8
    ],
)
def test_slices_make_groups_with_few_empty_places(layers, prelude, coda, loops, slices):
    config = ServedConfig(num_hidden_layers=layers, num_prelude_layers=prelude, num_coda_layers=coda, num_loops=loops)
    assert num_slices(config) == slices
