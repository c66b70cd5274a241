# SPDX-License-Identifier: Apache-2.0
"""Caches that look as if a prompt had gone through the model, in the time that random numbers take.

B batch, L loops, S tokens in the cache, Hkv KV heads, Dh head_dim, D hidden.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.configuration_utils import PreTrainedConfig

from configuration_plt import PLTConfig
from modeling_plt import PLTCache, PLTStaticCache


def new_cache(config: PreTrainedConfig, max_cache_len: int | None = None) -> Cache:
    """An empty cache of the kind that the model of this config makes for itself, or a static one of that length."""
    if max_cache_len is not None:
        if isinstance(config, PLTConfig):
            return PLTStaticCache(config, max_cache_len)
        return StaticCache(config, max_cache_len)
    return PLTCache(config) if isinstance(config, PLTConfig) else DynamicCache(config=config)


def fill(
    cache: Any, config: PreTrainedConfig, batch_size: int, context: int, device: torch.device, dtype: torch.dtype
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
    loops, size = config.looped_stage.loops, (batch_size, 1, config.hidden_size)
    states = [torch.randn(size, device=device, dtype=dtype) for _ in loops]
    cache.carry.write(states, torch.full((batch_size, 1), context - 1, device=device), pads=None, num_pads=None)
    cache.dtype = dtype  # a compiled step that found it unset would be compiled again when it is set
    return cache


def fill_layer(cache: PLTCache, config: PLTConfig, key: Tensor, value: Tensor, layer_idx: int) -> None:
    """Write keys and values `[B, Hkv, S, Dh]` to what the loops of a layer see: shared KV, windows, or full KV."""
    stage = config.stage_of(layer_idx)
    for loops in (stage.loops[:1], stage.loops[1:]):
        if not (stage.full_loops(loops) or stage.windowed_loops(loops)):
            continue
        keys, values = (states.unsqueeze(1).expand(-1, len(loops), -1, -1, -1) for states in (key, value))
        cache.update(keys, values, layer_idx, loops, key.shape[2])
