"""A quantization method of vLLM is asked for every projection, and never for the gate, a norm or a scale."""

import pytest
import torch
from engines import engine, loaded, random_prompts, save_tiny, served
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding

ASKED = {}


@register_quantization_config("plt_recording")
class Recording(QuantizationConfig):
    """Notes who asks, and quantizes nothing."""

    def get_name(self):
        return "plt_recording"

    def get_supported_act_dtypes(self):
        return [torch.float32]

    @classmethod
    def get_min_capability(cls):
        return 0

    @staticmethod
    def get_config_filenames():
        return []

    @classmethod
    def from_config(cls, config):
        return cls()

    def get_quant_method(self, layer, prefix):
        if isinstance(layer, Attention):
            return BaseKVCacheMethod(self)
        ASKED[prefix] = layer
        if isinstance(layer, VocabParallelEmbedding):
            return UnquantizedEmbeddingMethod()
        return UnquantizedLinearMethod() if "proj" in prefix else None


def test_every_projection_is_asked_for_and_the_gate_is_not(tmp_path):
    save_tiny(tmp_path)
    with engine(tmp_path, quantization="plt_recording") as llm:
        served(llm, random_prompts((5,)))
        (names,) = llm.apply_model(lambda model: [name for name, _ in model.named_parameters()])
    projections = {name for name in ASKED if "attn" not in name.split(".")[-1]}  # keys can be quantized, too
    layers = [f"model.layers.{layer}" for layer in range(3)]
    parts = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    expected = {f"{layer}.{part}" for layer in layers for part in parts}
    assert projections == expected | {"lm_head", "model.embed_tokens"}
    others = {name for name in names if not any(name.startswith(each) for each in projections)}
    assert {name.rsplit(".", 2)[-2] for name in others} == {
        "plt_gate",
        "gate_norm",
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }


def rewrite(folder, without: str | None = None, **more: torch.Tensor) -> None:
    """The checkpoint without a tensor, and with others."""
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(without, None)
    save_file(tensors | more, folder / "model.safetensors", {"format": "pt"})


def test_all_loops_have_the_scales_of_keys_and_values_that_the_checkpoint_has(tmp_path):
    """Those that read loop 0's keys from the cache, where they are quantized; those of the windows, too."""
    save_tiny(tmp_path, num_loops=3)
    scales = {f"model.layers.{layer}.self_attn": (0.25 + layer, 0.5 + layer, 2.0 + layer) for layer in range(3)}
    rewrite(
        tmp_path,
        **{
            f"{prefix}.{name}_proj.{name}_scale": torch.tensor(scale)
            for prefix, row in scales.items()
            for name, scale in zip("kv", row[:2], strict=True)
        },
        **{f"{prefix}.q_scale": torch.tensor(row[2]) for prefix, row in scales.items()},
    )
    with loaded(tmp_path, quantization="plt_recording", kv_cache_dtype="fp8") as model:
        found = {name: each for name, each in model.named_modules() if isinstance(each, Attention)}
    kinds = ("attn", "together_attn", "shared_attn_1", "shared_attn_2", "own_attn_1", "own_attn_2")
    assert len(found) == 3 * len(kinds)
    for name, each in found.items():
        key, value, query = scales[".".join(name.split(".")[:4])]
        assert (each._k_scale_float, each._v_scale_float, each._q_scale_float) == (key, value, query), name
        assert (each._k_scale, each._v_scale, each._q_scale) == (key, value, query), name
        assert (each._k_scale_cpu, each._v_scale_cpu) == (key, value), name


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        ("model.layers.1.input_layernorm.weight", {}, "lacks model.layers.1.input_layernorm.weight"),
        (None, {"model.norm.weight": torch.ones(5)}, r"must be of shape \[56\] by its config, got \[5\]"),
    ],
    ids=["missing", "another shape"],
)
def test_what_is_not_quantized_is_checked(without, more, message, tmp_path):
    save_tiny(tmp_path)
    rewrite(tmp_path, without, **more)
    with pytest.raises(ValueError, match=message), loaded(tmp_path, quantization="plt_recording"):
        pass
