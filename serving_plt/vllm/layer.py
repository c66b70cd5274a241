# SPDX-License-Identifier: Apache-2.0
"""A layer of a PLT in vLLM: that of `modeling_plt`, on rows instead of batches.

R loops in a pass, T tokens of all requests in the step, D hidden. Rows of a loop are together.
"""

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.utils import extract_layer_index

from .attention import PLTAttention
from .configs import ServedConfig
from .experts import PLTSparseMLP
from .mlp import PLTMLP


class PLTDecoderLayer(nn.Module):
    """Attention and MLP, with their norms."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.self_attn = PLTAttention(config, vllm_config, f"{prefix}.self_attn")
        self.mlp: nn.Module = mlp_of(config, vllm_config, prefix)
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


def mlp_of(config: ServedConfig, vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """The MLP of a layer: one, or many experts."""
    if config.is_sparse(extract_layer_index(prefix)):
        return PLTSparseMLP(config, vllm_config, f"{prefix}.mlp")
    return PLTMLP(config, vllm_config, f"{prefix}.mlp", config.intermediate_size, bias=config.mlp_bias)
