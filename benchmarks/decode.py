# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per decoded token, by batch size and context length, or by loops."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch._inductor import config as inductor_config
from transformers.modeling_utils import PreTrainedModel

from modeling_plt.cache_name_plt import THEIRS

from .filled_cache import fill, new_cache
from .models import SharedWeights
from .rows import LOOPED_ROWS, Row
from .timing import WARMUP_ROUNDS, measure_rows

TOKENS = 4  # decoded per row and round


def decode_step(model: PreTrainedModel, compiled: bool) -> Callable:
    """The model's forward, or one graph of it."""
    if not compiled:
        return model
    on_gpu = model.device.type == "cuda"
    # a GPU replays CUDA graphs; on a CPU, products of a few rows are as fast as of one only where weights are packed,
    # which inductor does for frozen graphs, and timed against each other
    how = {"mode": "reduce-overhead"} if on_gpu else {"options": {"max_autotune": True}}
    # each row of the table is another graph of the same code
    step = torch.compile(model.forward, fullgraph=True, dynamic=False, isolate_recompiles=True, **how)

    def frozen_step(*args: Any, **kwargs: Any) -> Any:
        # dynamo reads this while it traces, and the options of `torch.compile` do not reach it
        with inductor_config.patch(freezing=not on_gpu):
            return step(*args, **kwargs)

    return frozen_step


@torch.inference_mode()
def greedy_steps(
    model: PreTrainedModel, batch_size: int, context: int, max_cache_len: int | None = None
) -> Callable[[], None]:
    """A sample that decodes `TOKENS` more tokens after a cache of `context`, each time it is called.

    With `max_cache_len`, the cache is a static one of that length and the step is compiled.
    """
    cache = new_cache(model.config, max_cache_len)
    cache = fill(cache, model.config, batch_size, context, model.device, model.dtype)
    step = decode_step(model, compiled=max_cache_len is not None)
    token = torch.ones(batch_size, 1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def sample() -> None:
        nonlocal token
        for _ in range(TOKENS):
            token = step(token, use_cache=True, **{THEIRS: cache}).logits[:, -1:].argmax(-1)

    return sample


def measure_decoding(
    weights: SharedWeights, rows: list[Row], batch_sizes: list[int], contexts: list[int], rounds: int
) -> pd.DataFrame:
    def sample(model: PreTrainedModel, batch: int, context: int) -> Callable[[], None]:
        max_cache_len = context + TOKENS * (WARMUP_ROUNDS + rounds) if weights.setup.compiled else None
        return greedy_steps(model, batch, context, max_cache_len)

    points = [{"batch": batch, "context": context} for batch in batch_sizes for context in contexts]
    return measure_rows(weights, rows, points, sample, rounds, "ms per token", per_sample=TOKENS)


def measure_loops(weights: SharedWeights, batch_size: int, context: int, rounds: int) -> pd.DataFrame:
    """One point, all loop counts in the same rounds; one loop is the plain row and stands under both kinds."""
    loops = pd.DataFrame(
        [(kind, row.num_loops, row.name) for kind, rows in LOOPED_ROWS.items() for row in rows],
        columns=["kind", "loops", "row"],
    )
    rows = list({row.name: row for rows in LOOPED_ROWS.values() for row in rows}.values())
    timed = measure_decoding(weights, rows, [batch_size], [context], rounds)
    table = loops.merge(timed, on="row").drop(columns=["row", "passes"])
    return table.assign(**{"parallel efficiency": 1 / table["ratio to plain"]})
