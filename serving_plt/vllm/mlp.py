# SPDX-License-Identifier: Apache-2.0
"""The MLP of a layer or of an expert that every token has."""

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.activation import get_act_and_mul_fn
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from .configs import ServedConfig


class PLTMLP(nn.Module):
    """Llama's MLP; gate and up are one product, as vLLM has it.

    Args:
        width: that of a layer without experts, or of the shared expert.
        sums: whether to add the outputs of all processes, each of which has a part of the width.
    """

    def __init__(
        self,
        config: ServedConfig,
        vllm_config: VllmConfig,
        prefix: str,
        width: int,
        bias: bool = False,
        sums: bool = True,
    ):
        super().__init__()
        options = {"bias": bias, "quant_config": vllm_config.quant_config}
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size, [width] * 2, prefix=f"{prefix}.gate_up_proj", **options
        )
        self.down_proj = RowParallelLinear(
            width, config.hidden_size, reduce_results=sums, prefix=f"{prefix}.down_proj", **options
        )
        self.act_fn = get_act_and_mul_fn(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normed states `[n, D]` -> `[n, D]`."""
        return self.down_proj(self.act_fn(self.gate_up_proj(hidden_states)[0]))[0]
