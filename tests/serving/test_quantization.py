"""A quantization method of vLLM is asked for every projection, and never for the gate, a norm or a scale."""

import torch
from engines import engine, random_prompts, save_tiny, served
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
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
