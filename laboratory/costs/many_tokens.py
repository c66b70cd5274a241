# SPDX-License-Identifier: Apache-2.0
"""Time of what takes many tokens at once, by their number: a first token, all logits, or a training step."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
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


def measure_many_tokens(
    weights: SharedWeights,
    rows: list[Row],
    length: str,
    lengths: list[int],
    rounds: int,
    make_sample: Callable[[PreTrainedModel, Tensor], Callable[[], None]],
    label: str,
    num_outputs: int,
) -> pd.DataFrame:
    """A line per row and number of tokens, with the bound of its ratio to plain.

    Args:
        length: the name of the column of `lengths`.
        make_sample: makes what is timed of a model and token ids `[1, T]`.
        label: the name of the column of times.
        num_outputs: the number of last tokens with logits, 0 for all.
    """

    def sample(model: PreTrainedModel, **point: int) -> Callable[[], None]:
        return make_sample(model, random_ids(point[length], weights.setup))

    models = {row: weights.build(row) for row in rows}
    points = [{length: number} for number in lengths]
    return with_bound(measure_rows(models, points, sample, rounds, label), models, length, num_outputs)
