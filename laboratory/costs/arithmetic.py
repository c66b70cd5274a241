# SPDX-License-Identifier: Apache-2.0
"""Products of weights with tokens: they bound the time of a forward over many tokens.

What attention computes of keys is left out: positions that are not pruned are the last ones, which see most keys, so
that the whole has no smaller ratio to plain.
"""

import pandas as pd
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from configuration_plt import PLTConfig
from measuring_plt.rows import PLAIN, Row
from modeling_plt.passes_plt import schedule


def multiplications(model: PreTrainedModel, num_tokens: int, num_outputs: int) -> int:
    """Products with weights of `nn.Linear`, of several tokens with logits at the last `num_outputs` (0: all)."""
    config, head = model.config, model.lm_head.weight.numel()
    parts = model.model.layers[0].named_modules()
    layer = {name: part.weight.numel() for name, part in parts if isinstance(part, nn.Linear)}
    keys_and_values = layer["self_attn.k_proj"] + layer["self_attn.v_proj"]
    others = sum(layer.values()) - keys_and_values
    total = head * (num_outputs or num_tokens)
    if not isinstance(config, PLTConfig):  # Llama prunes nothing
        return total + config.num_hidden_layers * num_tokens * (keys_and_values + others)
    for stage, loops, spans in schedule(config, num_tokens, num_outputs, in_turn=True):
        if stage.full_loops(loops) or stage.windowed_loops(loops):
            total += keys_and_values * sum(spans[:-1])
        total += others * sum(spans[1:])
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
