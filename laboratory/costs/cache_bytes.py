# SPDX-License-Identifier: Apache-2.0
"""Bytes of the KV cache, by the formula and in a filled cache.

L loops, N layers, S tokens in the cache, W sliding window, D hidden.
"""

from collections.abc import Sequence

import pandas as pd
from tqdm.auto import tqdm
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.configuration_utils import PreTrainedConfig

from configuration_plt import PLTConfig
from measuring_plt.filled_cache import fill, new_cache
from measuring_plt.models import Setup, row_config
from measuring_plt.rows import Row
from modeling_plt import PLTCache

CONTEXTS = (512, 1024, 2048, 4608)  # in addition to those that decoding starts from
POSITION_BYTES = 8  # of the carry's position id


def theory(config: PreTrainedConfig, context: int, element_size: int) -> int:
    """Bytes that the paper's design needs for one sequence of S tokens.

    PLT: `2 * N * Hkv * Dh * (S + (L - 1) * (W - 1)) + L * D` elements; a loop without shared KV keeps L * S
    columns; the position id tells a new token whether it continues the carry.
    """
    column = 2 * config.num_key_value_heads * config.head_dim
    if not isinstance(config, PLTConfig):
        return element_size * config.num_hidden_layers * column * context
    num_columns, window = 0, min(context, config.sliding_window - 1)
    for stage in config.stages:
        of_layer = len(stage.full_loops(stage.loops)) * context + len(stage.windowed_loops(stage.loops)) * window
        num_columns += len(stage.layers) * of_layer
    elements = column * num_columns + len(config.looped_stage.loops) * config.hidden_size
    return element_size * elements + POSITION_BYTES


def measured(cache: Cache) -> int:
    """Bytes of the tensors of a filled cache."""
    if isinstance(cache, PLTCache):
        return cache.nbytes
    size = 0
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None  # filled
        size += layer.keys.nbytes + layer.values.nbytes
    return size


def measure_row(setup: Setup, row: Row, context: int) -> int:
    """The bytes of a row's cache after `context` tokens, batch 1."""
    config = row_config(setup.fields, row)
    return measured(fill(new_cache(config), config, 1, context, setup.device, setup.dtype))


def measure_cache(setup: Setup, rows: list[Row], contexts: Sequence[int]) -> pd.DataFrame:
    """One cache at a time, batch 1; the first row is plain."""
    records = []
    for context in tqdm(sorted({*contexts, *CONTEXTS}), desc="Filling caches", unit="context"):
        for row in rows:
            expected = theory(row_config(setup.fields, row), context, setup.dtype.itemsize)
            records.append((row.name, context, expected, measure_row(setup, row, context)))
    table = pd.DataFrame(records, columns=["row", "context", "bytes, theory", "bytes, measured"])
    plain = table.groupby("context")["bytes, measured"].transform("first")
    return table.assign(**{"ratio to plain": table["bytes, measured"] / plain})
