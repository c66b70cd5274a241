# SPDX-License-Identifier: Apache-2.0
"""Time of a training step: forward with loss, backward, and freeing the gradients; no optimizer."""

from collections.abc import Callable

import pandas as pd
import torch
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.models import SharedWeights, random_ids
from measuring_plt.rows import Row

from ..timing import measure_rows
from .arithmetic import with_bound


def training_step(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that makes the gradients of `input_ids` `[1, T]` and frees them, so that one row's fit in memory."""
    model.train()

    def sample() -> None:
        model(input_ids, labels=input_ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return sample


def measure_training(weights: SharedWeights, rows: list[Row], length: int, rounds: int) -> pd.DataFrame:
    def sample(model: PreTrainedModel, tokens: int) -> Callable[[], None]:
        return training_step(model, random_ids(tokens, weights.setup))

    models = {row: weights.build(row) for row in rows}
    table = measure_rows(models, [{"tokens": length}], sample, rounds, "ms per step")
    return with_bound(table, models, "tokens", num_outputs=0)
