# SPDX-License-Identifier: Apache-2.0
"""Bytes that a decode step must read: over the bandwidth of memory, they bound its time.

E experts of a layer, of which a row is sent to k.
"""

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from configuration_plt import PLTConfig
from modeling_plt.experts_plt import PLTSparseMoeBlock
from modeling_plt.packed import PackedLinear
from modeling_plt.passes_plt import schedule

from .cache_bytes import theory


def experts_read(num_experts: int, num_chosen: int, batch_size: int, num_loops: int, alike: float = 0.0) -> float:
    """How many of E experts the rows of a pass are expected to be sent to, the loops of each sequence.

    A row chooses its k at random, but in a share `alike` of the cases a later loop has the first one's choice.
    """
    chosen = num_chosen / num_experts
    not_sent = (1 - chosen) * (1 - (1 - alike) * chosen) ** (num_loops - 1)  # to an expert, by a sequence
    return num_experts * (1 - not_sent**batch_size)


def share_alike(overlap: float, num_experts: int, num_chosen: int) -> float:
    """The share `alike` with which two loops have this part of their experts in common, as `plt diagnose` shows it."""
    chosen = num_chosen / num_experts
    return (overlap - chosen) / (1 - chosen)


def unread(part: nn.Module, batch_size: int, num_loops: int, alike: float) -> float:
    """Bytes of experts that none of the rows is expected to be sent to."""
    total = 0.0
    for block in part.modules():
        if isinstance(block, PLTSparseMoeBlock):
            gate = block.gate
            read = experts_read(gate.num_experts, gate.top_k, batch_size, num_loops, alike)
            total += (1 - read / gate.num_experts) * sum(parameter.nbytes for parameter in block.experts.parameters())
    return total


def weight_bytes(part: nn.Module) -> int:
    """Bytes of all weights, packed or not, without embeddings, of which a token reads one row."""
    total = 0
    for module in part.modules():
        if isinstance(module, PackedLinear):
            total += module.product.nbytes + (0 if module.bias is None else module.bias.nbytes)
        elif not isinstance(module, nn.Embedding):
            total += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return total


def step_bytes(model: PreTrainedModel, batch_size: int, context: int, alike: float = 0.0) -> int:
    """The layers once in each pass, the head once, and for each sequence a KV cache of `context` tokens.

    Of experts, those to which the rows of a pass are expected to be sent, see `experts_read`.
    """
    config = model.config
    layers = [weight_bytes(layer) for layer in model.model.layers]
    once = weight_bytes(model.model) - sum(layers) + weight_bytes(model.lm_head)
    read = sum(layers)
    if isinstance(config, PLTConfig):
        passes = schedule(config, 1, 1, in_turn=not config.one_pass)
        read = sum(
            layers[idx] - round(unread(model.model.layers[idx], batch_size, len(loops), alike))
            for stage, loops, _ in passes
            for idx in stage.layers
        )
    return once + read + batch_size * theory(config, context, model.dtype.itemsize)
