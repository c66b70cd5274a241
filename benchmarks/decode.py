# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per decoded token, by batch size and context length."""

import itertools
from collections.abc import Callable

import torch
from transformers.modeling_utils import PreTrainedModel

from benchmarks_plt.filled_cache import fill, new_cache
from benchmarks_plt.models import SharedWeights
from benchmarks_plt.rows import Row
from benchmarks_plt.timing import Timed, time_interleaved

TOKENS = 4  # decoded per row and round


def greedy_steps(model: PreTrainedModel, batch_size: int, context: int) -> Callable[[], None]:
    """A sample that decodes `TOKENS` more tokens behind a cache of `context`, each time it is called."""
    cache = fill(new_cache(model.config), model.config, batch_size, context, model.device, model.dtype)
    token = torch.ones(batch_size, 1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def sample() -> None:
        nonlocal token
        for _ in range(TOKENS):
            token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

    return sample


def measure_point(
    models: dict[Row, PreTrainedModel], batch_size: int, context: int, rounds: int, device: torch.device
) -> list[Timed]:
    """All rows at one batch size and context; their caches are in memory together until it returns."""
    samples = {row.name: greedy_steps(model, batch_size, context) for row, model in models.items()}
    description = f"Decoding, batch {batch_size}, context {context}"
    timings = time_interleaved(samples, rounds, device, description, per_sample=TOKENS)
    return [Timed(row, {"batch": batch_size, "context": context}, timings[row.name]) for row in models]


def measure_decoding(
    weights: SharedWeights, rows: list[Row], batch_sizes: tuple[int, ...], contexts: tuple[int, ...], rounds: int
) -> list[Timed]:
    models = {row: weights.build(row) for row in rows}
    points = itertools.product(batch_sizes, contexts)
    device = weights.setup.device
    return [timed for point in points for timed in measure_point(models, *point, rounds, device)]
