# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per decoded token beside their bound, by batch size and context length, or by loops."""

from collections.abc import Callable

import pandas as pd
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.greedy import TOKENS, greedy_steps
from measuring_plt.models import SharedWeights
from measuring_plt.rows import LOOPED_ROWS, Row
from measuring_plt.turns import WARMUP_ROUNDS

from ..timing import measure_rows, parallel_efficiency
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
    """One point, all loop counts in the same rounds; one loop is the plain row and stands under both kinds.

    Parallel efficiency is the median of the rounds'.
    """
    loops = pd.DataFrame(
        [(kind, row.num_loops, row.name) for kind, rows in LOOPED_ROWS.items() for row in rows],
        columns=["kind", "loops", "row"],
    )
    rows = list({row.name: row for rows in LOOPED_ROWS.values() for row in rows}.values())
    timed = measure_decoding(weights, rows, [batch_size], [context], rounds)
    by_round = timed.set_index("row")["ms per token, by round"].map(pd.Series)
    efficiency = {
        together.name: parallel_efficiency(
            by_round[in_turn.name], by_round[together.name], together.num_loops
        ).median()
        for together, in_turn in zip(*LOOPED_ROWS.values(), strict=True)
    }
    table = loops.merge(timed, on="row")
    found = table["row"].map(efficiency).where(table["kind"] == "PLT")
    return table.drop(columns=["row", "passes"]).assign(**{"parallel efficiency": found})
