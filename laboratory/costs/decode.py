# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per decoded token beside their bound, by batch size and context length, or by loops."""

from collections.abc import Callable

import pandas as pd
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.greedy import TOKENS, greedy_steps
from measuring_plt.models import SharedWeights
from measuring_plt.rows import LOOPED_ROWS, Row
from measuring_plt.turns import WARMUP_ROUNDS

from ..timing import by_loops, measure_rows
from .bandwidth import read_bandwidth
from .step_bytes import step_bytes


def measure_decoding(
    weights: SharedWeights, rows: list[Row], batch_sizes: list[int], contexts: list[int], rounds: int
) -> pd.DataFrame:
    def sample(model: PreTrainedModel, batch: int, context: int) -> Callable[[], None]:
        max_cache_len = context + TOKENS * (WARMUP_ROUNDS + rounds) if weights.setup.compiled else None
        return greedy_steps(model, batch, context, max_cache_len)

    points = [{"batch": batch, "context": context} for batch in batch_sizes for context in contexts]
    models = {row: weights.build_for_decoding(row) for row in rows}
    before = read_bandwidth(weights.setup.device)
    table = measure_rows(models, points, sample, rounds, "ms per token", per_sample=TOKENS)
    bandwidth = max(before, read_bandwidth(weights.setup.device))  # a bound is that of the faster moment
    by_name = {row.name: model for row, model in models.items()}
    lines = zip(table["row"], table["batch"], table["context"], strict=True)
    read = pd.Series([step_bytes(by_name[name], batch, context) for name, batch, context in lines])
    bound = 1000 * read / bandwidth
    return table.assign(**{"read, MB": read / 1e6, "bound, ms": bound, "bound / time": bound / table["ms per token"]})


def measure_loops(weights: SharedWeights, batch_size: int, context: int, rounds: int) -> pd.DataFrame:
    """One point, all loop counts in the same rounds."""
    rows = list({row.name: row for rows in LOOPED_ROWS.values() for row in rows}.values())
    return by_loops(measure_decoding(weights, rows, [batch_size], [context], rounds))
