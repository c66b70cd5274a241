"""What vLLM does with a PLT by default, and on a GPU: its own functions, called on a CPU with made-up steps."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import BLOCK, LOOPS, as_prompts, engine, generated, greedy, random_prompts
from vllm import LLM
from vllm.config import CompilationConfig, CUDAGraphMode
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends import flash_attn, triton_attn
from vllm.v1.attention.backends.short_conv_attn import ShortConvAttentionMetadataBuilder
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.worker.gpu.attn_utils import init_attn_backend
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.model_states.mamba_hybrid import MambaHybridModelState

from modeling_plt import PLTForCausalLM
from serving_plt.vllm.model_state import PLTModelState

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32


@pytest.fixture(scope="module")
def llm(folder, model):
    with engine(folder) as llm:
        yield llm


@pytest.fixture
def settings(llm):
    return llm.llm_engine.vllm_config


def test_prefixes_are_cached_and_prompts_come_in_chunks(settings):
    assert settings.cache_config.enable_prefix_caching
    assert settings.cache_config.mamba_cache_mode == "align"
    assert settings.scheduler_config.enable_chunked_prefill


def hits(llm: LLM, model: PLTForCausalLM) -> list[int]:
    """Tokens that are found again of a prompt, of its first half, and of it all, each with others behind it."""
    (text,) = random_prompts((4 * BLOCK + 2,))
    found = []
    for prompt in (text, [*text[: 2 * BLOCK], 7, 8], [*text, 7, 8]):
        (output,) = llm.generate(as_prompts([prompt]), greedy(), use_tqdm=False)
        assert list(output.outputs[0].token_ids) == generated(model, [prompt])[0]
        found.append(output.num_cached_tokens)
    return found


def test_a_prefix_is_found_again_at_the_last_block_of_a_prompt_alone(llm, model, settings):
    assert settings.cache_config.prefix_cache_retention_interval == 0
    assert hits(llm, model) == [0, 0, 4 * BLOCK]


def test_the_second_runner_has_all_that_a_plt_needs(settings, monkeypatch):
    """So it is what a GPU gets; a CPU gets the first, because it has no Triton."""
    assert not settings.use_v2_model_runner
    assert settings._get_v2_model_runner_unsupported_features() == []
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)
    assert settings.use_v2_model_runner
    monkeypatch.setattr(settings, "speculative_config", SimpleNamespace(method="suffix", parallel_drafting=False))
    assert not settings.use_v2_model_runner


def test_the_second_runner_moves_the_carry_as_the_state_of_a_hybrid(llm, settings):
    (found,) = llm.apply_model(lambda model: resolve_model_state_cls(settings, model))
    assert found is PLTModelState and issubclass(found, MambaHybridModelState)


def test_the_second_runner_groups_the_layers(llm, settings):
    """Those with the same number of heads and the same keys; the carry has a group of its own, of the right kind."""
    layers = settings.compilation_config.static_forward_context
    core = llm.llm_engine.engine_core.engine_core
    memory = copy.deepcopy(core.scheduler.kv_cache_config)
    every, _, _ = init_attn_backend(memory, settings, torch.device("cpu"))
    groups = [group for of_kind in every for group in of_kind]
    names = [name for group in groups for name in group.layer_names]
    assert sorted(names) == sorted(name for name, layer in layers.items() if isinstance(layer, AttentionLayerBase))
    for group in groups:
        kinds = {
            (layers[name].num_heads, layers[name].sliding_window) if isinstance(layers[name], Attention) else "carry"
            for name in group.layer_names
        }
        assert len(kinds) == 1
        builder = group.get_metadata_builder(0)
        assert isinstance(builder, ShortConvAttentionMetadataBuilder) == (kinds == {"carry"})


@pytest.mark.parametrize("asked", [CUDAGraphMode.FULL_DECODE_ONLY, CUDAGraphMode.FULL])
def test_the_kind_of_the_carry_has_graphs_of_steps_that_decode(asked, settings):
    """And not of those that prefill, whatever is asked for."""
    support = ShortConvAttentionMetadataBuilder.get_cudagraph_support(settings, None)
    assert support == AttentionCGSupport.UNIFORM_BATCH
    compilation = CompilationConfig(cudagraph_mode=asked, cudagraph_capture_sizes=[1, 2, 4], splitting_ops=[])
    found = compilation.resolve_cudagraph_mode_and_sizes(support, "SHORT_CONV", use_v2_model_runner=True)
    assert found == CUDAGraphMode.FULL_DECODE_ONLY


@pytest.mark.parametrize(
    ("requests", "replayed"),
    [
        ({"decodes": (9, 9, 1), "decodes too": (5, 7, 1)}, True),
        ({"decodes": (9, 9, 1), "ends a prompt": (9, 8, 1)}, True),
        ({"decodes": (9, 9, 1), "begins with one token": (1, 0, 1)}, False),
        ({"decodes": (9, 9, 1), "prefills": (9, 0, 9)}, False),
    ],
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else "",
)
def test_the_second_runner_replays_steps_in_which_each_request_decodes(requests, replayed, settings, monkeypatch):
    """A request has tokens of its prompt, those of them that are computed, and those in the step."""
    prompts, computed, new = (np.array(column) for column in zip(*requests.values(), strict=True))
    scheduled = SimpleNamespace(
        num_scheduled_tokens=dict(zip(requests, new.tolist(), strict=True)),
        total_num_scheduled_tokens=int(new.sum()),
        scheduled_spec_decode_tokens={},
    )
    states = SimpleNamespace(
        req_id_to_index={name: number for number, name in enumerate(requests)},
        prefill_len=SimpleNamespace(np=prompts),
        num_computed_prefill_tokens=computed,
    )
    runner = SimpleNamespace(decode_query_len=1, req_states=states, use_pp=False, pcp_manager=None)
    _, uniform = GPUModelRunner.gather_batch_req_state(runner, scheduled, dummy_run=False)
    monkeypatch.setattr(settings.compilation_config, "cudagraph_capture_sizes", [1, 2, 4, 8, 16])
    monkeypatch.setattr(settings.compilation_config, "max_cudagraph_capture_size", 16)
    monkeypatch.setattr(type(current_platform), "get_global_graph_pool", lambda _: None)
    graphs = CudaGraphManager(settings, torch.device("cpu"), CUDAGraphMode.FULL_DECODE_ONLY, 1)
    graphs._graphs_captured = True
    found = graphs.dispatch(len(new), int(new.sum()), uniform, 0, max_query_len=int(new.max()))
    assert found.cg_mode == (CUDAGraphMode.FULL if replayed else CUDAGraphMode.NONE)


STEP = {  # two requests that decode, with 5 and 9 tokens
    "num_actual_tokens": 2,
    "query_start_loc": torch.tensor([0, 1, 2]),
    "seq_lens": torch.tensor([5, 9]),
    "max_query_len": 1,
    "max_seq_len": 9,
    "block_table": torch.tensor([[1], [2]]),
    "causal": True,
}


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(
    ("module", "implementation", "kernel", "version"),
    [
        (flash_attn, "FlashAttentionImpl", "flash_attn_varlen_func", 2),
        (flash_attn, "FlashAttentionImpl", "flash_attn_varlen_func", 3),
        (triton_attn, "TritonAttentionImpl", "unified_attention", None),
    ],
    ids=["FlashAttention 2", "FlashAttention 3", "Triton"],
)
def test_a_kernel_gets_the_keys_of_loop_0_for_all_heads(module, implementation, kernel, version, window, monkeypatch):
    """Of a layer that gives no keys: the cache as it is, queries of all loops; a window counts the token itself."""
    calls = []
    monkeypatch.setattr(module, kernel, lambda **arguments: calls.append(arguments), raising=False)
    heads = LOOPS * HEADS
    attention = getattr(module, implementation)(
        heads, HEAD_DIM, 1.0, KV_HEADS, None, window, "auto", kv_sharing_target_layer_name="attn"
    )
    attention.vllm_flash_attn_version = version
    cache, query = torch.randn(3, KV_HEADS, 16, 2 * HEAD_DIM), torch.randn(2, heads, HEAD_DIM)
    layer = SimpleNamespace(_q_scale=torch.ones(1), _k_scale=torch.ones(1), _v_scale=torch.ones(1))
    attention.forward(layer, query, None, None, cache, made_up(STEP), torch.empty_like(query))
    (given,) = calls
    assert torch.equal(given["q"], query)
    assert torch.equal(given["k"], cache.transpose(1, 2)[..., :HEAD_DIM])
    assert given["k"].data_ptr() == cache.data_ptr()
    assert list(given["window_size"]) == ([-1, -1] if window is None else [window - 1, 0])
    assert given["causal"] is True


def made_up(step: dict) -> object:
    """Metadata in which all else is absent."""

    class Absent(SimpleNamespace):
        def __getattr__(self, name):
            return None

    return Absent(**step)


@pytest.mark.parametrize(
    ("tokens", "is_async", "ratio"), [(1024, False, 1.13), (2048, False, 1.26), (2048, True, 1.51), (8192, True, 2.0)]
)
def test_a_window_is_counted_with_all_tokens_in_flight(tokens, is_async, ratio, settings, monkeypatch):
    """Of two batches when steps are scheduled ahead; a request of 8192 tokens, a PLT-2 beside a plain model."""
    monkeypatch.setattr(settings.scheduler_config, "max_num_batched_tokens", tokens)
    monkeypatch.setattr(settings.scheduler_config, "async_scheduling", is_async)
    monkeypatch.setattr(settings.model_config, "max_model_len", 8192)
    sizes = {"block_size": 16, "num_kv_heads": 4, "head_size": 64, "dtype": torch.bfloat16}
    plain = FullAttentionSpec(**sizes).max_memory_usage_bytes(settings)
    window = SlidingWindowSpec(sliding_window=64, **sizes).max_memory_usage_bytes(settings)
    assert (plain + window) / plain == pytest.approx(ratio, abs=0.005)


def test_an_interval_keeps_prefixes_inside_of_a_prompt(folder, model):
    with engine(folder, prefix_cache_retention_interval=2 * BLOCK) as llm:
        assert hits(llm, model) == [0, 2 * BLOCK, 4 * BLOCK]
