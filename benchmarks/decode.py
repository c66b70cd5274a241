# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per decoded token, by batch size and context length."""

import itertools
from collections.abc import Callable

import torch
from transformers.modeling_utils import PreTrainedModel

from benchmarks_plt.filled_cache import fill, new_cache
from benchmarks_plt.models import Setup, SharedWeights
from benchmarks_plt.rows import Row
from benchmarks_plt.timing import WARMUP_ROUNDS, Timed, time_interleaved
from modeling_plt.cache_name_plt import THEIRS

TOKENS = 4  # decoded per row and round


def decode_step(model: PreTrainedModel, compiled: bool) -> Callable:
    """The model's forward, or one graph of it."""
    if not compiled:
        return model
    # between kernels there is no Python: a GPU replays CUDA graphs, on a CPU the calls are compiled too
    how = {"mode": "reduce-overhead"} if model.device.type == "cuda" else {"options": {"cpp_wrapper": True}}
    # each row is another graph of the same code
    return torch.compile(model.forward, fullgraph=True, dynamic=False, isolate_recompiles=True, **how)


@torch.inference_mode()
def greedy_steps(
    model: PreTrainedModel, batch_size: int, context: int, max_cache_len: int | None = None
) -> Callable[[], None]:
    """A sample that decodes `TOKENS` more tokens behind a cache of `context`, each time it is called.

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


def measure_point(
    models: dict[Row, PreTrainedModel], batch_size: int, context: int, rounds: int, setup: Setup
) -> list[Timed]:
    """All rows at one batch size and context; their caches are in memory together until it returns."""
    max_cache_len = context + TOKENS * (WARMUP_ROUNDS + rounds) if setup.compiled else None
    samples = {row.name: greedy_steps(model, batch_size, context, max_cache_len) for row, model in models.items()}
    description = f"Decoding, batch {batch_size}, context {context}"
    timings = time_interleaved(samples, rounds, setup.device, description, per_sample=TOKENS)
    return [Timed(row, {"batch": batch_size, "context": context}, timings[row.name]) for row in models]


def measure_decoding(
    weights: SharedWeights, rows: list[Row], batch_sizes: tuple[int, ...], contexts: tuple[int, ...], rounds: int
) -> list[Timed]:
    models = {row: weights.build(row) for row in rows}
    points = itertools.product(batch_sizes, contexts)
    return [timed for point in points for timed in measure_point(models, *point, rounds, weights.setup)]
