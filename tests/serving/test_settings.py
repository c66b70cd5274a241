"""What the plugin makes of vLLM's settings where there are CUDA graphs: a made-up platform, and vLLM's functions."""

import pytest
import torch
import vllm.config.vllm
from engines import OPTIONS, loaded, save_tiny
from vllm.config import CompilationMode, CUDAGraphMode, VllmConfig
from vllm.config.vllm import OPTIMIZATION_LEVEL_02
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from serving_plt.vllm.configs import ServedConfig
from serving_plt.vllm.model import PLTForCausalLM

MODELS = {
    "plt": {"num_loops": 3},
    "shared KV": {"loop_attention": "shared"},
    "coda": {"num_coda_layers": 1},
    "vanilla loop": {"num_loops": 2, "loop_shift": False, "loop_attention": "own"},
    "plain": {"num_loops": 1},
}

CARRIED = ("plt", "shared KV", "coda")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("served") for name in MODELS}
    for name, folder in folders.items():
        save_tiny(folder, **MODELS[name])
    return folders


@pytest.fixture
def with_v2(monkeypatch):
    """With Triton vLLM has its V2 runner, as on a GPU."""
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", True)


@pytest.fixture
def with_graphs(monkeypatch):
    """A platform that has graphs, and leaves vLLM its compiler, of which a CPU takes another mode."""
    platform = type(current_platform)
    check = platform.check_and_update_config

    def keep_mode(_, settings):
        mode = settings.compilation_config.mode
        check(settings)
        settings.compilation_config.mode = mode

    monkeypatch.setattr(platform, "support_static_graph_mode", lambda _: True)
    monkeypatch.setattr(platform, "check_and_update_config", keep_mode)


def settings_of(folder, graphs: str | None = None, **options) -> VllmConfig:
    given = {} if graphs is None else {"compilation_config": {"cudagraph_mode": graphs}}
    return EngineArgs(model=str(folder), **OPTIONS | {"enforce_eager": False} | given | options).create_engine_config()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, CUDAGraphMode.FULL_DECODE_ONLY),
        ({"optimization_level": 0}, CUDAGraphMode.NONE),
        ({"optimization_level": 1}, CUDAGraphMode.FULL_DECODE_ONLY),
        ({"optimization_level": 3}, CUDAGraphMode.FULL_DECODE_ONLY),
        ({"enforce_eager": True}, CUDAGraphMode.NONE),
        ({"graphs": "NONE"}, CUDAGraphMode.NONE),
        ({"graphs": "FULL_DECODE_ONLY"}, CUDAGraphMode.FULL_DECODE_ONLY),
    ],
    ids=lambda value: None if isinstance(value, CUDAGraphMode) else " ".join(map(str, value)) or "default",
)
def test_graphs_are_of_whole_decode_steps(model, options, mode, folders, with_graphs, with_v2):
    compilation = settings_of(folders[model], **options).compilation_config
    assert compilation.cudagraph_mode == mode
    compiled = options.get("optimization_level") != 0 and "enforce_eager" not in options
    assert compilation.mode == (CompilationMode.VLLM_COMPILE if compiled else CompilationMode.NONE)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("graphs", ["PIECEWISE", "FULL", "FULL_AND_PIECEWISE"])
def test_other_graphs_are_refused(model, graphs, folders, with_v2):
    with pytest.raises(ValueError, match=f"`cudagraph_mode` must be NONE or FULL_DECODE_ONLY, got {graphs}"):
        settings_of(folders[model], graphs)


@pytest.mark.parametrize("model", MODELS)
def test_vllms_v1_runner_has_no_graphs_of_a_carry(model, folders, with_graphs):
    """It replays a graph of decoding where each request has one token, a prompt of one token included."""
    assert GPUModelRunner._is_uniform_decode(1, 1, num_tokens=2, num_reqs=2)
    if model in CARRIED:
        assert settings_of(folders[model]).compilation_config.cudagraph_mode == CUDAGraphMode.NONE
        with pytest.raises(ValueError, match="`cudagraph_mode` must be NONE, got FULL_DECODE_ONLY"):
            settings_of(folders[model], "FULL_DECODE_ONLY")
    else:
        assert settings_of(folders[model]).compilation_config.cudagraph_mode == CUDAGraphMode.FULL_DECODE_ONLY


def test_other_graphs_are_refused_where_vllm_chooses_them_later(folders, with_v2):
    """As it does for some connectors of KV caches, after it has asked the plugin."""
    settings = settings_of(folders["plt"])
    settings.compilation_config.cudagraph_mode = CUDAGraphMode.PIECEWISE
    with pytest.raises(ValueError, match="must be NONE or FULL_DECODE_ONLY, got PIECEWISE"):
        PLTForCausalLM(vllm_config=settings)


def test_graphs_of_parts_end_the_start_where_vllm_turns_to_them_last(folders, with_graphs, with_v2):
    """When it knows that an attention backend has no graphs, it takes those of parts, without asking the plugin."""
    settings = settings_of(folders["plt"])
    found = settings.compilation_config.resolve_cudagraph_mode_and_sizes(
        AttentionCGSupport.NEVER, "a backend", use_v2_model_runner=True
    )
    assert found == CUDAGraphMode.PIECEWISE
    with (
        loaded(folders["plt"]) as model,
        set_forward_context(None, settings, cudagraph_runtime_mode=found),
        pytest.raises(ValueError, match="`cudagraph_mode` must be NONE, got PIECEWISE"),
    ):
        model(torch.zeros(2, dtype=torch.long), torch.arange(2))


@pytest.mark.parametrize("model", MODELS)
def test_a_cpu_has_no_graphs(model, folders):
    assert settings_of(folders[model]).compilation_config.cudagraph_mode == CUDAGraphMode.NONE


@pytest.mark.parametrize("model, fused", [("plt", False), ("vanilla loop", False), ("plain", True)])
def test_all_reduce_is_not_fused_with_a_norm_of_more_rows_than_tokens(model, fused, folders, with_graphs, monkeypatch):
    """Where vLLM fuses them by default: on some GPUs, with tensor parallelism."""
    monkeypatch.setitem(OPTIMIZATION_LEVEL_02["compilation_config"]["pass_config"], "fuse_allreduce_rms", True)
    assert settings_of(folders[model]).compilation_config.pass_config.fuse_allreduce_rms is fused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"compilation_config": {"pass_config": {"fuse_allreduce_rms": True}}},
            "`fuse_allreduce_rms` must be False, got True",
        ),
        (
            {"tensor_parallel_size": 4, "decode_context_parallel_size": 2},
            "`decode_context_parallel_size` must be 1, got 2",
        ),
        *(
            ({"kv_cache_dtype": f"{kind}_per_token_head"}, f"per token and head, got {kind}_per_token_head")
            for kind in ("int4", "int8", "fp8")
        ),
    ],
    ids=["fused all-reduce", "context parallel", "int4 cache", "int8 cache", "fp8 cache"],
)
def test_what_would_answer_wrong_is_refused(options, message, folders):
    with pytest.raises(ValueError, match=message):
        settings_of(folders["plt"], **options)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        ("shared KV", {}, "later loops need a window"),
        ("vanilla loop", {}, "later loops need a window, and the state of the token before"),
        ("plain", {}, "later loops need a window"),
        ("coda", {}, "a coda reads all tokens of a prompt"),
        ("plt", {"enable_lora": True}, "an adapter is found by a row's place"),
        ("plt", {"runner": "pooling"}, "a pooler may read all tokens"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_where_a_prompt_is_not_pruned(model, options, reason, folders):
    with pytest.raises(ValueError, match=f"{reason}.*: `kv_sharing_fast_prefill` must be False, got True"):
        settings_of(folders[model], kv_sharing_fast_prefill=True, **options)


def test_what_keys_of_another_layer_forbid_is_not_refused_without_them(folders):
    """In a vanilla loop, every loop reads keys of its own."""
    options = {"tensor_parallel_size": 4, "decode_context_parallel_size": 2, "kv_cache_dtype": "int8_per_token_head"}
    settings_of(folders["vanilla loop"], **options)
    settings_of(folders["plt"], kv_cache_dtype="fp8")


def test_what_is_compiled_for_loops_in_turn_is_kept_apart():
    assert ServedConfig(one_pass=False).to_json_string() != ServedConfig().to_json_string()


@pytest.mark.parametrize("one_pass", [True, False])
def test_attention_of_all_loops_is_made_where_they_are_in_one_pass(one_pass, tmp_path):
    save_tiny(tmp_path, num_loops=2)
    with loaded(tmp_path, hf_overrides={"one_pass": one_pass}) as model:
        assert {layer.self_attn.together_attn is not None for layer in model.model.layers} == {one_pass}
        assert (model.model.together is not None) == one_pass
