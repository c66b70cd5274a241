# SPDX-License-Identifier: Apache-2.0
"""A layer of a PLT in vLLM: that of `modeling_plt`, on rows instead of batches.

R loops in a pass, T tokens of all requests in the step, D hidden. Rows of a loop are together.
"""

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import get_act_and_mul_fn
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from .attention import PLTAttention
from .configs import ServedConfig


class PLTMLP(nn.Module):
    """Llama's MLP; gate and up are one product, as vLLM has it."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        options = {"bias": config.mlp_bias, "quant_config": vllm_config.quant_config}
        sizes = [config.intermediate_size] * 2
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size, sizes, prefix=f"{prefix}.gate_up_proj", **options
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, prefix=f"{prefix}.down_proj", **options
        )
        self.act_fn = get_act_and_mul_fn(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden_states)[0]))[0]


class PLTDecoderLayer(nn.Module):
    """Attention and MLP, with their norms."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.self_attn = PLTAttention(config, vllm_config, f"{prefix}.self_attn")
        self.mlp = PLTMLP(config, vllm_config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.sandwich_norm = config.norm_placement == "sandwich"
        if self.sandwich_norm:
            self.input_layernorm_2 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.post_attention_layernorm_2 = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, positions: Tensor, loops: range) -> Tensor:
        """One pass `[R * T, D]` -> the same; the rows of a loop are together."""
        attended = self.self_attn(self.input_layernorm(hidden_states), hidden_states, positions, loops)
        hidden_states = hidden_states + (self.input_layernorm_2(attended) if self.sandwich_norm else attended)
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + (self.post_attention_layernorm_2(output) if self.sandwich_norm else output)
