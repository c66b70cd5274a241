# SPDX-License-Identifier: Apache-2.0
"""Time of a training step: forward with loss, backward, and freeing the gradients; no optimizer."""

from collections.abc import Callable

import torch
from transformers.modeling_utils import PreTrainedModel

from benchmarks_plt.models import SharedWeights
from benchmarks_plt.random_ids import random_ids
from benchmarks_plt.rows import Row
from benchmarks_plt.timing import Timed, time_interleaved


def training_step(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that makes the gradients of `input_ids` `[1, T]` and frees them, so that one row's fit in memory."""
    model.train()

    def sample() -> None:
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return sample


def measure_training(weights: SharedWeights, rows: list[Row], length: int, rounds: int) -> list[Timed]:
    input_ids = random_ids(length, weights.setup)
    samples = {row.name: training_step(weights.build(row), input_ids) for row in rows}
    timings = time_interleaved(samples, rounds, weights.setup.device, f"Training, {length} tokens")
    return [Timed(row, {"tokens": length}, timings[row.name]) for row in rows]
