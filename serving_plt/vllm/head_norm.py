# SPDX-License-Identifier: Apache-2.0
"""Norms of queries and keys before the rotation.

n rows of a pass, H heads in all, h those of this process, Dh head_dim.
"""

from torch import Tensor, nn
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.layers.layernorm import RMSNorm

from .configs import ServedConfig


class NormOfEachHead(RMSNorm):
    """Of each head by itself (Qwen3)."""

    def forward(self, states: Tensor) -> Tensor:
        """`[n, h * Dh]` -> the same."""
        return super().forward(states.unflatten(-1, (-1, self.hidden_size))).flatten(-2)


class NormOfAllHeads(RMSNorm):
    """Of a row over all heads together (OLMoE, OLMo-2), for which the processes tell each other theirs."""

    def forward(self, states: Tensor) -> Tensor:
        """`[n, h * Dh]` -> the same."""
        processes, width = get_tensor_model_parallel_world_size(), states.shape[-1]
        copies = processes * width // self.hidden_size  # of each head, where there are more processes than KV heads
        every = tensor_model_parallel_all_gather(states.contiguous()).unflatten(-1, (processes, width))[:, ::copies]
        own = get_tensor_model_parallel_rank() // copies
        return super().forward(every.flatten(1)).unflatten(-1, (-1, width))[:, own].contiguous()


def head_norm(config: ServedConfig, num_heads: int) -> nn.Module:
    """The norm that a config wants of the queries, or of the keys, of `num_heads` heads in all."""
    assert config.head_dim is not None  # the config has set it
    if config.qk_norm == "head":
        return NormOfEachHead(config.head_dim, eps=config.rms_norm_eps)
    if config.qk_norm == "whole":
        return NormOfAllHeads(num_heads * config.head_dim, eps=config.rms_norm_eps)
    return nn.Identity()
