# SPDX-License-Identifier: Apache-2.0
"""Operations on the rows of queries, keys and values, which a config counts in heads.

transformers has both for equal numbers of heads only: `Chunk` cuts equal parts, and `PermuteForRope` takes the heads
of the queries for the keys.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps

Parts = dict[str, list[Tensor]]  # by patterns


class SplitHeads(ConversionOps):
    """One tensor of queries, keys and values, cut into three with as many rows as the config has heads for each."""

    def convert(  # type: ignore[override]
        self, input_dict: Parts, source_patterns: list[str], target_patterns: list[str], config: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        ((fused,),) = input_dict.values()
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        return dict(zip(target_patterns, fused.split([count * config.head_dim for count in heads]), strict=True))


class SplitBiases(ConversionOps):
    """Biases `[2, 1, H, Dh]` of queries and keys, to which zeros are added for the values."""

    def convert(  # type: ignore[override]
        self, input_dict: Parts, source_patterns: list[str], target_patterns: list[str], config: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        ((both,),) = input_dict.values()
        query, key = both.reshape(2, -1)
        return dict(zip(target_patterns, (query, key, torch.zeros_like(key)), strict=True))


class PairsToHalves(ConversionOps):
    """The even rows of each head of queries and keys, then the odd ones: rotary pairs that were neighbours."""

    def convert(  # type: ignore[override]
        self,
        input_dict: dict[str, Tensor],
        source_patterns: list[str],
        target_patterns: list[str],
        config: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        pairs = (-1, config.head_dim // 2, 2)
        return {
            name: rows if "v_proj" in name else rows.unflatten(0, pairs).transpose(1, 2).flatten(0, 2)
            for name, rows in input_dict.items()
        }
