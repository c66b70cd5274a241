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
        self.norms_input, self.norms_sum = norms_input, config.norm_placement == "residual"
        self.unit_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, has_weight=False)
        self.input_layernorm = optional_norm(config, norms_input)
        self.input_layernorm_2 = optional_norm(config, norms_output)
        self.post_attention_layernorm = optional_norm(config, norms_input)
        self.post_attention_layernorm_2 = optional_norm(config, norms_output)

    def forward(self, hidden_states: Tensor, positions: Tensor, loops: range) -> Tensor:
        """One pass `[R * T, D]` -> the same; the rows of a loop are together."""
        attended = self.self_attn(*self.norm_input(hidden_states, loops), positions, loops)
        hidden_states = self.add(hidden_states, attended, self.input_layernorm_2)
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        return self.add(hidden_states, output, self.post_attention_layernorm_2)

    def norm_input(self, hidden_states: Tensor, loops: range) -> tuple[Tensor, Tensor]:
        """Normed and unit input of the layer, `[R * T, D]` each: the latter is over its root mean square, no more.

        A gate that reads states has a norm of its own, which differs from the layer's by the weight alone.
        """
        if loops.stop == 1 or not self.self_attn.gate_reads_states:
            normed: Tensor = self.input_layernorm(hidden_states)
            return normed, hidden_states  # which no gate reads
        unit = self.unit_norm(hidden_states)
        return unit * self.input_layernorm.weight if self.norms_input else hidden_states, unit

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
