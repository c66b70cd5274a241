# SPDX-License-Identifier: Apache-2.0
"""A layer of a PLT in vLLM: that of `modeling_plt`, on rows instead of batches.

R loops in a pass, T tokens of all requests in the step, D hidden. Rows of a loop are together.
"""

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm

from .attention import PLTAttention
from .configs import ServedConfig
from .experts import PLTSparseMLP
from .mlp import PLTMLP


class PLTDecoderLayer(nn.Module):
    """Attention and MLP, with their norms."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str, layer_idx: int):
        super().__init__()
        self.self_attn = PLTAttention(config, vllm_config, f"{prefix}.self_attn", layer_idx)
        self.mlp: nn.Module = mlp_of(config, vllm_config, f"{prefix}.mlp", layer_idx)
        norms_input, norms_output = config.norm_placement != "output", config.norm_placement != "pre"
        self.norms_sum = config.norm_placement == "residual"
        self.input_layernorm = optional_norm(config, norms_input)
        self.input_layernorm_2 = optional_norm(config, norms_output)
        self.post_attention_layernorm = optional_norm(config, norms_input)
        self.post_attention_layernorm_2 = optional_norm(config, norms_output)

    def forward(self, hidden_states: Tensor, positions: Tensor, loops: range) -> Tensor:
        """One pass `[R * T, D]` -> the same; the rows of a loop are together."""
        attended = self.self_attn(self.input_layernorm(hidden_states), hidden_states, positions, loops)
        hidden_states = self.add(hidden_states, attended, self.input_layernorm_2)
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        return self.add(hidden_states, output, self.post_attention_layernorm_2)

    def add(self, hidden_states: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
        """States and what attention or MLP puts out `[R * T, D]`, of which a norm may be wanted, or of their sum."""
        summed: Tensor = norm(hidden_states + output) if self.norms_sum else hidden_states + norm(output)
        return summed


def optional_norm(config: ServedConfig, is_there: bool) -> nn.Module:
    return RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if is_there else nn.Identity()


def mlp_of(config: ServedConfig, vllm_config: VllmConfig, prefix: str, layer_idx: int) -> nn.Module:
    """The MLP of a layer: one, or many experts."""
    if config.is_sparse(layer_idx):
        return PLTSparseMLP(config, vllm_config, prefix)
    return PLTMLP(config, vllm_config, prefix, config.intermediate_size, bias=config.mlp_bias)
