# SPDX-License-Identifier: Apache-2.0
"""Products of weights with tokens: they bound the time of a forward over many tokens.

What attention computes of keys is left out: positions that are not pruned are the last ones, which see most keys, so
that the whole has no smaller ratio to plain.
"""

from itertools import pairwise

import pandas as pd
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from configuration_plt import PLTConfig
from measuring_plt.rows import PLAIN, Row
from modeling_plt.experts_plt import idle_in
from modeling_plt.passes_plt import schedule


def products_of_layer(layer: nn.Module) -> tuple[int, int]:
    """Of one token: those with the weights of keys and values, and with all others, of experts those it is sent to."""
    parts = dict(layer.named_modules())
    keys_and_values = sum(parts[f"self_attn.{name}_proj"].weight.numel() for name in "kv")
    linear = sum(part.weight.numel() for part in parts.values() if isinstance(part, nn.Linear))
    routed = [parts[name] for name in ("mlp.experts", "mlp.gate") if name in parts]
    experts = sum(parameter.numel() for part in routed for parameter in part.parameters()) - idle_in(layer)
    return keys_and_values, linear + experts - keys_and_values


def multiplications(model: PreTrainedModel, num_tokens: int, num_outputs: int) -> int:
    """Products with weights of projections, of several tokens with logits at the last `num_outputs` (0: all)."""
    config, layers = model.config, [products_of_layer(layer) for layer in model.model.layers]
    total = model.lm_head.weight.numel() * (num_outputs or num_tokens)
    if not isinstance(config, PLTConfig):  # Llama prunes nothing
        return total + num_tokens * sum(map(sum, layers))
    for stage, loops, spans in schedule(config, num_tokens, num_outputs, in_turn=True):
        has_keys = bool(stage.full_loops(loops) or stage.windowed_loops(loops))
        for layer_idx, (entering, leaving) in zip(stage.layers, pairwise(spans), strict=True):
            keys_and_values, others = layers[layer_idx]
            total += has_keys * keys_and_values * entering + others * leaving
    return total


def with_bound(table: pd.DataFrame, models: dict[Row, PreTrainedModel], length: str, num_outputs: int) -> pd.DataFrame:
    """The table with what arithmetic alone would make of the ratio to plain.

    Args:
        length: the column that has the number of tokens.
        num_outputs: at how many of the last ones there are logits, 0 for all.
    """
    by_name = {row.name: model for row, model in models.items()}

    def bound(line: pd.Series) -> float:
        own, plain = (multiplications(by_name[name], line[length], num_outputs) for name in (line["row"], PLAIN.name))
        return own / plain

    return table.assign(bound=table.apply(bound, axis="columns"))
