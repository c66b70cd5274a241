# SPDX-License-Identifier: Apache-2.0
"""Caches that look as if a prompt had gone through the model, in the time that random numbers take.

B batch, L loops, S tokens in the cache, Hkv KV heads, Dh head_dim, D hidden.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.configuration_utils import PreTrainedConfig

from configuration_plt import PLTConfig
from modeling_plt import PLTCache, PLTStaticCache


def new_cache(config: PreTrainedConfig, max_cache_len: int | None = None) -> Cache:
    """An empty cache of the kind that the model of this config makes for itself, or a static one of that length."""
    if max_cache_len is not None:
        kind = PLTStaticCache if isinstance(config, PLTConfig) else StaticCache
        return kind(config, max_cache_len)
    return PLTCache(config) if isinstance(config, PLTConfig) else DynamicCache(config=config)


def fill(
    cache: Cache, config: PreTrainedConfig, batch_size: int, context: int, device: torch.device, dtype: torch.dtype
) -> Cache:
    """Write S random tokens to an empty cache, the same in every layer and loop; values do not change the time."""
    shape = (batch_size, config.num_key_value_heads, context, config.head_dim)
    key, value = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
    if not isinstance(config, PLTConfig):
        for layer_idx in range(config.num_hidden_layers):
            cache.update(key, value, layer_idx)
        return cache
    for layer_idx in range(config.num_hidden_layers):
        fill_layer(cache, config, key, value, layer_idx)
    carry_shape = (batch_size, context, config.hidden_size)
    num_carried = config.num_loops - 1 if config.loop_shift else 0
    states = [torch.randn(carry_shape[0], 1, carry_shape[2], device=device, dtype=dtype) for _ in range(num_carried)]
    cache.carry.write(states, torch.full((batch_size, 1), context - 1, device=device))
    return cache


def fill_layer(cache: PLTCache, config: PLTConfig, key: Tensor, value: Tensor, layer_idx: int) -> None:
    """Write keys and values `[B, Hkv, S, Dh]` to what the loops of a layer see: shared KV, windows, or full KV."""
    own_loops = range(0)
    if config.loop_attention == "own":
        own_loops = range(config.num_loops)
    else:
        cache.update(key, value, layer_idx)
        if config.has_gate:
            own_loops = range(1, config.num_loops)
    if own_loops:
        key, value = (states.repeat(1, len(own_loops), 1, 1) for states in (key, value))
        cache.update_own(key, value, layer_idx, own_loops, key.shape[2])
