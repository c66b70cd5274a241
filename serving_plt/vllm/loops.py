# SPDX-License-Identifier: Apache-2.0
"""The two ways through the loops of a step, each a graph of its own for vLLM's compiler.

T tokens of all requests in the step, L loops, D hidden.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig

from .configs import ServedConfig

ROWS = {"inputs_embeds": 0, "positions": 0, "carried": 1}  # dimensions of T


def goes_together(config: ServedConfig, vllm_config: VllmConfig) -> bool:
    """Whether steps that decode take all loops at once: not with LoRA, which finds a row's adapter by its place."""
    return config.one_pass and config.has_carry and vllm_config.lora_config is None


class Loops(nn.Module):
    """The parts of both ways.

    Args:
        mix: makes the input of a later loop of the embeddings and the states of the loop before it.
        run: runs some loops at once through all layers.
    """

    def __init__(self, vllm_config: VllmConfig, num_loops: int, mix: Callable, run: Callable):
        super().__init__()
        self.num_loops, self.mix, self.run = num_loops, mix, run


@support_torch_compile(dynamic_arg_dims=ROWS | {"starts": 0})
class InTurn(Loops):
    """Loop after loop, over all tokens of the step."""

    def forward(
        self, inputs_embeds: Tensor, positions: Tensor, carried: Tensor | None, starts: Tensor | None
    ) -> Tensor:
        """Embeddings `[T, D]`, positions `[T]`, the carry as `Carry.read` gives it -> states of all loops `[L, T, D]`.

        Without a carry, each later loop reads the same token.
        """
        states = [self.run(inputs_embeds, positions, range(1))]
        for loop in range(1, self.num_loops):
            previous = states[-1]
            if carried is not None:
                assert starts is not None  # a step has both or neither
                previous = torch.where(starts, carried[loop - 1], previous.roll(1, dims=0))
            states.append(self.run(self.mix(inputs_embeds, previous), positions, range(loop, loop + 1)))
        return torch.stack(states)


@support_torch_compile(dynamic_arg_dims=ROWS)
class Together(Loops):
    """All loops in one pass, where each token is the only one of its request.

    A later loop of a token reads the token before it, whose states are the carry.
    """

    def forward(self, inputs_embeds: Tensor, positions: Tensor, carried: Tensor) -> Tensor:
        """As `InTurn.forward`."""
        mixed = self.mix(inputs_embeds, carried).flatten(0, 1)
        states = self.run(torch.cat((inputs_embeds, mixed)), positions.repeat(self.num_loops), range(self.num_loops))
        return states.unflatten(0, (self.num_loops, -1))
