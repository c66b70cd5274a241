# SPDX-License-Identifier: Apache-2.0
"""Sparse layers: a router sends each token to a few of many MLPs (mixture of experts).

Router, experts and their kernels are those of Qwen3-MoE, names in files too. Each loop routes its own states.

B batch, L loops, T new tokens, n rows of a pass (loops times positions), E experts, D hidden.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import conversion_mapping
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeExperts,
    Qwen3MoeMLP,
    Qwen3MoeTopKRouter,
    load_balancing_loss_func,
)

from .configuration_plt import PLTConfig
from .passes_plt import Pass

Routed = dict[tuple[int, int, int], Tensor]  # router logits by stage (its first layer), loop, layer


class PLTSparseMoeBlock(nn.Module):
    """The MLP of a sparse layer: the chosen experts, and a shared one where the config has it (Qwen2-MoE)."""

    def __init__(self, config: PLTConfig):
        super().__init__()
        self.experts = Qwen3MoeExperts(config)
        self.gate = Qwen3MoeTopKRouter(config)
        self.shared_expert = self.shared_expert_gate = None
        if config.shared_expert_intermediate_size is not None:
            self.shared_expert = Qwen3MoeMLP(config, intermediate_size=config.shared_expert_intermediate_size)
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Normed states `[B, n, D]` -> output `[B, n, D]`, router logits `[B, n, E]`."""
        rows = hidden_states.flatten(0, 1)
        router_logits, weights, chosen = self.gate(rows)
        output = self.experts(rows, chosen, weights)
        if self.shared_expert is not None:
            shared = self.shared_expert(rows)
            if self.shared_expert_gate is not None:
                shared = self.shared_expert_gate(rows).sigmoid() * shared
            output = output + shared
        return output.view_as(hidden_states), router_logits.unflatten(0, hidden_states.shape[:2])

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Take a matrix per expert too, as files have it: `Trainer` resumes by `load_state_dict` of a file."""
        stacked = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        for name, parts in stacked.items():
            names = [[f"{prefix}experts.{n}.{part}.weight" for part in parts] for n in range(self.gate.num_experts)]
            if all(each in state_dict for of_expert in names for each in of_expert):
                experts = [torch.cat([state_dict.pop(each) for each in of_expert]) for of_expert in names]
                state_dict[f"{prefix}experts.{name}"] = torch.stack(experts)
        super()._load_from_state_dict(state_dict, prefix, *args)


def wanted_routing(config: PLTConfig, output_router_logits: bool | None) -> Routed | None:
    """Where router logits are to be put, if they are wanted: as the config says where an argument does not.

    Raises:
        ValueError: they are wanted of a model that has none.
    """
    if output_router_logits and config.num_experts == 0:
        raise ValueError("`output_router_logits=True` needs experts, got a model with `num_experts=0`.")
    if output_router_logits is None:
        output_router_logits = config.output_router_logits
    return {} if output_router_logits else None


def in_order(routed: Routed | None) -> tuple[Tensor, ...] | None:
    """Router logits loop after loop in each stage."""
    return None if routed is None else tuple(routed[key] for key in sorted(routed))


def by_loop_and_layer(router_logits: Tensor, run: Pass, layer_idx: int) -> Routed:
    """Those of one pass `[B, R * T, E]` as `[B * T, E]` of each loop, in the given order."""
    pads, of_loops = run.tokens.pads, router_logits.unflatten(1, (len(run.loops), -1)).unbind(1)
    if pads is not None:
        of_loops = tuple(pads.give_back(logits, before=logits[:, :1]) for logits in of_loops)
    first = run.stage.layers.start
    return {(first, loop, layer_idx): logits.flatten(0, 1) for loop, logits in zip(run.loops, of_loops, strict=True)}


def balance_loss(config: PLTConfig, router_logits: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    """How unequally real tokens are spread over experts, 1 if equally: all sparse layers and loops are one pool.

    Args:
        router_logits: `[B * T, E]` of each.
        attention_mask: `[B, >= T]`, 0 for pads.
    """
    if attention_mask is not None:
        num_tokens = router_logits[0].shape[0] // attention_mask.shape[0]
        attention_mask = attention_mask[:, -num_tokens:]
    logits: Any = router_logits  # typed there as a tuple of one
    loss = load_balancing_loss_func(logits, config.num_experts, config.num_experts_per_tok, attention_mask)
    assert isinstance(loss, Tensor)  # there are logits
    return loss


def share_of_labels(labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor | float:
    """Labels `[B, T]` that count here, of all that count in a step: what a loss per micro-batch must be weighed by.

    `Trainer` adds up the losses of micro-batches and processes, each of which is a sum over labels divided by theirs.
    """
    if num_items_in_batch is None:
        return 1.0
    return (labels[:, 1:] != -100).sum() / num_items_in_batch


def fuse_experts(config: PLTConfig) -> None:
    """Tell transformers that files hold one matrix per expert, the model one tensor of all; without experts, nothing.

    Said of each model when it is built, and again when it is saved: transformers knows one answer for a `model_type`,
    which another model or an older folder's own code may have given since.
    """
    mapping = conversion_mapping.get_checkpoint_conversion_mapping("qwen2_moe") if config.num_experts else []
    conversion_mapping.register_checkpoint_conversion_mapping(PLTConfig.model_type, mapping, overwrite=True)


def idle_in(layers: nn.Module) -> int:
    """How many weights of some layers' experts a token is not sent to."""
    idle = 0
    for block in layers.modules():
        if isinstance(block, PLTSparseMoeBlock):
            of_experts = sum(parameter.numel() for parameter in block.experts.parameters())
            idle += of_experts - of_experts * block.gate.top_k // block.gate.num_experts
    return idle
