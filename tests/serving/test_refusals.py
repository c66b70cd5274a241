"""What cannot be served is refused before it runs, in a sentence that says what was asked and what can be."""

import contextlib
import json
from configparser import ConfigParser
from types import SimpleNamespace

import pytest
import torch
import vllm
from checkout import ROOT
from engines import OPTIONS, engine, save_tiny
from safetensors.torch import load_file, save_file
from tiny import EXPERTS
from transformers import AutoConfig
from vllm.engine.arg_utils import EngineArgs

from configuration_plt import PLTConfig
from serving_plt.vllm import checks
from serving_plt.vllm.checks import OLDEST, Checks
from serving_plt.vllm.gpu_checks.served_tokens import DRAFTS
from serving_plt.vllm.register import register
from serving_plt.vllm.weights import checked

GATE, KEY = "model.layers.0.self_attn.plt_gate.weight", "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def folder(tmp_path):
    save_tiny(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pipeline_parallel_size": 2}, "`pipeline_parallel_size` must be 1, got 2"),
        ({"speculative_config": DRAFTS}, "`enable_prefix_caching` must be False, got True"),
        ({"disable_sliding_window": True}, r"derived max_model_len \(sliding_window=4"),
        ({"max_model_len": 1024}, "max_model_len"),
        ({"kv_cache_memory_bytes": 1 << 16}, "KV cache"),
    ],
    ids=["pipeline parallel", "drafts that cannot be taken back", "no window", "context", "memory"],
)
def test_options(folder, options, message):
    with pytest.raises(Exception, match=message), engine(folder, **options):
        pass


@pytest.mark.parametrize(
    ("has_triton", "cached", "method", "message"),
    [
        (True, True, "ngram", None),
        (False, False, "ngram_gpu", None),
        (False, True, "ngram", "`enable_prefix_caching` must be False, got True"),
        (True, False, "eagle3", "must have a `method` of 'ngram' or 'ngram_gpu', got 'eagle3'"),
    ],
)
def test_drafts(has_triton, cached, method, message, folder, monkeypatch):
    """By a model of their own, or where vLLM lacks what takes a rejected one back."""
    monkeypatch.setattr(checks, "HAS_TRITON", has_triton)
    options = OPTIONS | {"speculative_config": DRAFTS, "enable_prefix_caching": False}
    settings = EngineArgs(model=str(folder), **options).create_engine_config()
    settings.cache_config.enable_prefix_caching, settings.speculative_config.method = cached, method
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        Checks.verify_and_update_config(settings)


@pytest.mark.parametrize("version", ["0.31.2", "0.32.0", "0.32.1.dev3+cpu", "0.33.0rc1", "0.33.4", "0.34.0rc1", "1.0"])
def test_versions(folder, version, monkeypatch, caplog):
    """Older than tested is refused, newer is warned of once."""
    monkeypatch.setattr(vllm, "__version__", version)
    register()
    if version.startswith("0.31"):
        with pytest.raises(ValueError, match=f"needs vLLM 0.32 or newer, got {version}"):
            AutoConfig.from_pretrained(folder)
        return
    for _ in range(2):
        AutoConfig.from_pretrained(folder)
    said = [record.getMessage() for record in caplog.records]
    is_new = version in ("0.34.0rc1", "1.0")
    assert len(said) == is_new
    assert not is_new or f"tested with vLLM 0.32 to 0.33; this is {version}" in said[0]


def test_an_older_version_is_refused_before_an_engine_starts(folder, monkeypatch):
    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    with pytest.raises(Exception, match="needs vLLM 0.32 or newer, got 0.31.2"), engine(folder):
        pass


def test_what_is_declared_is_what_is_refused():
    """The extra has the same lower bound, and no upper one."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"vllm>={OLDEST}" in setup["options.extras_require"]["vllm"].split()


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        ((GATE,), {}, f"lacks {GATE}"),
        ((KEY,), {}, f"lacks {KEY}"),
        ((), {"model.layers.0.extra.bias": torch.ones(2)}, "a tensor model.layers.0.extra.bias"),
        ((), {GATE: torch.ones(4, 5)}, r"must be of shape \[4, 56\] by its config, got \[4, 5\]"),
    ],
    ids=["missing", "a part of a projection missing", "unknown", "another shape"],
)
def test_checkpoints(folder, without, more, message):
    tensors = {name: each for name, each in load_file(folder / "model.safetensors").items() if name not in without}
    save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Exception, match=message), engine(folder):
        pass


@pytest.mark.parametrize("name", ["experts.3.up_proj.weight", "gate.weight", "shared_expert_gate.weight"])
def test_checkpoints_of_experts(name, tmp_path):
    """vLLM itself takes experts for complete once it has one."""
    config, name = save_tiny(tmp_path, **EXPERTS).config, f"model.layers.1.mlp.{name}"
    tensors = load_file(tmp_path / "model.safetensors")
    assert dict(checked(tensors.items(), config)) == tensors
    tensor = tensors.pop(name)
    with pytest.raises(ValueError, match=f"lacks {name}"):
        dict(checked(tensors.items(), config))
    with pytest.raises(ValueError, match="must be of shape"):
        dict(checked((tensors | {name: tensor[:, 1:]}).items(), config))


def test_a_misspelled_field(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_loop": 3}))
    with pytest.raises(Exception, match="is `num_loops` meant"), engine(folder):
        pass


def test_experts_with_an_activation_that_vllm_lacks():
    fields = EXPERTS | {"hidden_act": "relu"}
    message = "`hidden_act` of 'silu', 'gelu', 'gelu_pytorch_tanh', got 'relu'"
    given = SimpleNamespace(hf_config=PLTConfig(**fields), hf_overrides={})
    with pytest.raises(ValueError, match=message):
        Checks.verify_and_update_config(SimpleNamespace(model_config=given, parallel_config=None))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"parallel_config": {"enable_eplb": True}}, "`enable_eplb` must be False, got True"),
        ({"parallel_config": {"data_parallel_size": 2}}, "`data_parallel_size` must be 1 with experts, got 2"),
        (
            {"aux_output_config": {"enable_return_routed_experts": True}},
            "`enable_return_routed_experts` must be False, got True",
        ),
        ({"compilation_config": {"fast_moe_cold_start": True}}, "`fast_moe_cold_start` must be False, got True"),
        ({"lora_config": {}}, "`enable_lora` must be False with experts, got True"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_settings_that_count_experts_otherwise(setting, message, tmp_path):
    """Without experts they are vLLM's own affair."""
    for fields in ({}, EXPERTS | {"hidden_size": 64}):
        save_tiny(tmp_path, **fields)
        settings = EngineArgs(model=str(tmp_path), **OPTIONS).create_engine_config()
        for part, values in setting.items():
            if getattr(settings, part) is None:
                setattr(settings, part, SimpleNamespace())
            for name, value in values.items():
                assert hasattr(getattr(settings, part), name)
                setattr(getattr(settings, part), name, value)
        with pytest.raises(ValueError, match=message) if fields else contextlib.nullcontext():
            Checks.verify_and_update_config(settings)


def test_vllm_is_told_that_layers_with_experts_run_more_than_once(tmp_path):
    """vLLM asks before it chooses, and not at all with torch 2.11 or newer."""
    save_tiny(tmp_path, **EXPERTS | {"hidden_size": 64})
    settings = EngineArgs(model=str(tmp_path), **OPTIONS).create_engine_config()
    settings.compilation_config.fast_moe_cold_start = None
    Checks.verify_and_update_config(settings)
    assert settings.compilation_config.fast_moe_cold_start is False
