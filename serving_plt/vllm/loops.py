# SPDX-License-Identifier: Apache-2.0
"""What vLLM compiles: layers of one loop, and all loops of tokens that are each alone in its request.

Each object is a graph of its own, which vLLM keeps by its tag.

T tokens of all requests in the step, L loops, D hidden.
"""

from collections.abc import Callable

from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig


@support_torch_compile(dynamic_arg_dims={"hidden_states": 0, "positions": 0})
class OneLoop(nn.Module):
    """Some layers of one loop, over any rows of the step."""

    def __init__(self, vllm_config: VllmConfig, run: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.run = run

    def forward(self, hidden_states: Tensor, positions: Tensor) -> Tensor:
        """States `[n, D]`, positions `[n]` -> states `[n, D]`."""
        return self.run(hidden_states, positions)


@support_torch_compile(dynamic_arg_dims={"start": 0, "positions": 0, "carried": 1})
class AllLoops(nn.Module):
    """All loops in one pass, where each token is the only one of its request.

    A later loop of a token reads the token before it, whose states are the carry.
    """

    def __init__(self, vllm_config: VllmConfig, run: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        self.run = run

    def forward(self, start: Tensor, positions: Tensor, carried: Tensor) -> Tensor:
        """What loops start from `[T, D]`, positions `[T]`, the carry `[L - 1, T, D]` -> states `[L, T, D]`."""
        return self.run(start, positions, carried)


def compiled(kind: type[nn.Module], tag: str, vllm_config: VllmConfig, run: Callable[..., Tensor]) -> nn.Module:
    """One of the above, for vLLM to compile under a name."""
    with set_model_tag(tag):
        return kind(vllm_config=vllm_config, run=run)
