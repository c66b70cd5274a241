# SPDX-License-Identifier: Apache-2.0
"""Time to first token, by prompt length."""

from collections.abc import Callable

import torch
from transformers.modeling_utils import PreTrainedModel

from benchmarks_plt.models import SharedWeights
from benchmarks_plt.random_ids import random_ids
from benchmarks_plt.rows import Row
from benchmarks_plt.timing import Timed, time_interleaved


def first_token(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that fills a new cache with `input_ids` `[1, T]` and picks the next token."""

    @torch.inference_mode()
    def sample() -> None:
        model(input_ids, logits_to_keep=1, use_cache=True).logits[:, -1].argmax(-1)

    return sample


def measure_prefill(
    weights: SharedWeights, rows: list[Row], prompt_lengths: tuple[int, ...], rounds: int
) -> list[Timed]:
    models = {row: weights.build(row) for row in rows}
    timed = []
    for length in prompt_lengths:
        input_ids = random_ids(length, weights.setup)
        samples = {row.name: first_token(model, input_ids) for row, model in models.items()}
        timings = time_interleaved(samples, rounds, weights.setup.device, f"Prefill, {length} tokens")
        timed += [Timed(row, {"prompt": length}, timings[row.name]) for row in rows]
    return timed
