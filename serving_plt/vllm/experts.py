# SPDX-License-Identifier: Apache-2.0
"""Sparse layers: a router sends each row of a pass to a few of many MLPs, which are vLLM's fused experts.

Each loop routes its own states: to the experts, a token of L loops in one pass is L rows.

n rows of a pass (loops times tokens), E experts, D hidden.
"""

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.fused_moe import FusedMoEFactory, GateLinear
from vllm.model_executor.layers.linear import ReplicatedLinear

from .checks import ACTIVATIONS_OF_EXPERTS
from .configs import ServedConfig
from .mlp import PLTMLP


class SharedExpert(PLTMLP):
    """The expert that every row has; `gate` weighs it, if there is one.

    Its output is this process's part: vLLM adds those of all processes once, with the experts'.
    """

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str, gate: nn.Module | None):
        width = config.shared_expert_intermediate_size
        assert width is not None  # there is a shared expert
        super().__init__(config, vllm_config, prefix, width, sums=False)
        self.gate = gate

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normed states `[n, D]` -> `[n, D]`."""
        output = super().forward(hidden_states)
        return output if self.gate is None else self.gate(hidden_states)[0].sigmoid() * output


class PLTSparseMLP(nn.Module):
    """The MLP of a sparse layer: the chosen experts, and a shared one where the config has it (Qwen2-MoE).

    Router and gate of the shared expert are never quantized.
    """

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.gate = GateLinear(config.hidden_size, config.num_experts, prefix=f"{prefix}.gate")
        self.shared_expert_gate = self.shared_expert = None
        if config.shared_expert_intermediate_size is not None:
            if config.shared_expert_gate:
                name = f"{prefix}.shared_expert_gate"
                self.shared_expert_gate = ReplicatedLinear(config.hidden_size, 1, bias=False, prefix=name)
            self.shared_expert = SharedExpert(config, vllm_config, f"{prefix}.shared_expert", self.shared_expert_gate)
        assert config.num_experts_per_tok is not None and config.moe_intermediate_size is not None
        self.experts = FusedMoEFactory(
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            renormalize=config.norm_topk_prob,
            activation=ACTIVATIONS_OF_EXPERTS[config.hidden_act],
            quant_config=vllm_config.quant_config,
            shared_experts=self.shared_expert,
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normed states `[n, D]` -> `[n, D]`."""
        router_logits, _ = self.gate(hidden_states)
        return self.experts(hidden_states=hidden_states, router_logits=router_logits)
