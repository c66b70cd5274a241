# SPDX-License-Identifier: Apache-2.0
"""Moving a looped model from what it was trained with to a PLT, while it is trained.

In training only: evaluation, generation and saved folders are those of the plain PLT at any time.
"""

from copy import copy
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM
from modeling_plt.attention_plt import PLTAttention, rotate
from modeling_plt.modeling_plt import PLTModel


@dataclass
class RampArguments:
    """Which part of a run takes a mechanism of PLT from 0 to 1; 0 has it whole from the start."""

    shared_kv_ramp: float = field(
        default=0.0,
        metadata={"help": "part of the steps in which later loops move from all of their own keys to the shared KV"},
    )
    shift_ramp: float = field(
        default=0.0,
        metadata={"help": "part of the steps in which later loops move from their token's state to the one before"},
    )
    window_ramp: float = field(
        default=0.0,
        metadata={"help": "part of the steps in which later loops' own window shrinks from the block to the model's"},
    )

    @property
    def any_ramp(self) -> bool:
        return any(getattr(self, name) for name in RAMPS)

    def __post_init__(self) -> None:
        for name in RAMPS:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`--{name}` must be from 0 to 1, got {getattr(self, name)}.")


RAMPS = tuple(each.name for each in fields(RampArguments))


class HealingAttention(PLTAttention):
    """Later loops attend to `(1 - w)` times their own keys and values plus `w` times the shared KV (as MELT does)."""

    shared_kv_weight = 0.0

    def forward(
        self,
        hidden_states: Tensor,
        layer_input: Tensor,
        shared_key: Any,
        shared_value: Any,
        loops: range,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """As `PLTAttention.forward`."""
        key, value = shared_key, shared_value
        if self.training and loops.start > 0 and self.shared_kv_weight < 1:
            own = rotate(self.k_norm(self.split_heads(self.k_proj(hidden_states), 1)), kwargs["position_embeddings"])
            key = torch.lerp(own, shared_key, self.shared_kv_weight)
            own = self.split_heads(self.v_proj(hidden_states), 1)
            value = torch.lerp(own, shared_value, self.shared_kv_weight)
        output, weights, key, value = super().forward(hidden_states, layer_input, key, value, loops, *args, **kwargs)
        if loops.start > 0:
            key, value = shared_key, shared_value
        return output, weights, key, value


class HealingModel(PLTModel):
    """Later loops start from `(1 - w)` times their token's state, a vanilla loop's input, plus `w` times a PLT's."""

    shift_weight = 0.0

    def loop_input(
        self, loop_idx: int, num_positions: int, inputs_embeds: Tensor, states: list[Tensor], *args: Any
    ) -> Tensor:
        """As `PLTModel.loop_input`."""
        hidden_states = super().loop_input(loop_idx, num_positions, inputs_embeds, states, *args)
        if self.training and loop_idx > 0 and self.shift_weight < 1:
            return torch.lerp(states[loop_idx - 1], hidden_states, self.shift_weight)
        return hidden_states


class Ramps(TrainerCallback):
    """Moves the weights of the two, and the window, linearly with the steps.

    The classes of the modules are exchanged, so that names, weights and saved folders stay those of a PLT.
    """

    def __init__(self, model: PLTForCausalLM, arguments: RampArguments, block_size: int):
        self.arguments, self.block_size, self.config = arguments, block_size, model.config
        self.decoder: Any = model.model
        self.attentions: list[Any] = [layer.self_attn for layer in self.decoder.layers]
        self.decoder.__class__ = HealingModel
        for attention in self.attentions:
            attention.__class__ = HealingAttention

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        part = state.global_step / state.max_steps
        self.decoder.shift_weight = weight(part, self.arguments.shift_ramp)
        for attention in self.attentions:
            attention.shared_kv_weight = weight(part, self.arguments.shared_kv_ramp)
        shrunk, window = weight(part, self.arguments.window_ramp), self.config.sliding_window
        if shrunk < 1 and window < self.block_size:
            wider = copy(self.config)
            wider.sliding_window = round(self.block_size + shrunk * (window - self.block_size))
            self.use(wider)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.use(self.config)  # between steps the model is evaluated and saved

    def use(self, config: PLTConfig) -> None:
        for module in (self.decoder, *self.attentions):
            module.config = config


def weight(part: float, ramp: float) -> float:
    """Of a mechanism, after a part of the steps."""
    return 1.0 if part >= ramp else part / ramp
