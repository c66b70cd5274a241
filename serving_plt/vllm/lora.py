# SPDX-License-Identifier: Apache-2.0
"""LoRA in a pass of all loops.

vLLM finds a row's adapter by its place among the tokens of the step. In a pass of all loops, the rows of each loop are
in the order of the tokens: so what adapters add is computed loop by loop, and the projection that they add to at once.

T tokens of all requests in a step, L loops, D hidden.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from vllm.lora.layers import BaseLayerWithLoRA
from vllm.lora.punica_wrapper import PunicaWrapperBase


class LoopByLoop:
    """Stands between a layer and `of_tokens`, by which vLLM adds to the layer's output what adapters change.

    Every argument but the first two goes on as it is.

    Args:
        most: how many times the step's tokens are in the layer's rows, in a pass of all loops.
    """

    def __init__(self, of_tokens: PunicaWrapperBase, most: int):
        self.of_tokens, self.most, self.times = of_tokens, most, 1

    def add_lora_linear(self, out: Tensor, states: Tensor, *rest: Any, **more: Any) -> None:
        """Add to `[times * T, out]` what adapters make of `[times * T, in]`."""
        for of_loop in zip(out.chunk(self.times), states.chunk(self.times), strict=True):
            self.of_tokens.add_lora_linear(*of_loop, *rest, **more)

    def add_shrink(self, out: Tensor, states: Tensor, *rest: Any, **more: Any) -> None:
        """The first half of it, where processes share an adapter: `[times * T, in]` to `[slices, times * T, rank]`."""
        for into, of_loop in zip(out.chunk(self.times, dim=1), states.chunk(self.times), strict=True):
            whole = into.contiguous()  # which the kernel of GPUs asks for
            self.of_tokens.add_shrink(whole, of_loop, *rest, **more)
            into.copy_(whole)

    def add_expand(self, out: Tensor, states: Tensor, *rest: Any, **more: Any) -> None:
        """The second half: add to `[times * T, out]` what `[slices, times * T, rank]` makes."""
        for of_loop in zip(out.chunk(self.times), states.chunk(self.times, dim=1), strict=True):
            self.of_tokens.add_expand(*of_loop, *rest, **more)


def split(part: nn.Module, most: int) -> list[LoopByLoop]:
    """Put a `LoopByLoop` into every layer of a part of the model that can have adapters."""
    layers = [each for each in part.modules() if isinstance(each, BaseLayerWithLoRA)]
    splits = [LoopByLoop(layer.punica_wrapper, most) for layer in layers]
    for layer, between in zip(layers, splits, strict=True):
        layer.set_mapping(between)
    return splits


@contextmanager
def all_loops(splits: Sequence[LoopByLoop]) -> Iterator[None]:
    """A pass of all loops. A compiler, which sees it once, takes `times` for a number."""
    for each in splits:
        each.times = each.most
    try:
        yield
    finally:
        for each in splits:
            each.times = 1
