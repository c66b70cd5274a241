# SPDX-License-Identifier: Apache-2.0
"""Time to the first token after a prompt, or to all logits of it, by its length."""

from collections.abc import Callable

import pandas as pd
from torch import Tensor
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.greedy import all_logits, first_token
from measuring_plt.models import SharedWeights, random_ids
from measuring_plt.rows import Row

from ..timing import measure_rows
from .arithmetic import with_bound


def measure_prefill(weights: SharedWeights, rows: list[Row], prompt_lengths: list[int], rounds: int) -> pd.DataFrame:
    return measure_prompts(weights, rows, prompt_lengths, rounds, first_token, "ms to first token", num_outputs=1)


def measure_scoring(weights: SharedWeights, rows: list[Row], prompt_lengths: list[int], rounds: int) -> pd.DataFrame:
    return measure_prompts(weights, rows, prompt_lengths, rounds, all_logits, "ms to all logits", num_outputs=0)


def measure_prompts(
    weights: SharedWeights,
    rows: list[Row],
    prompt_lengths: list[int],
    rounds: int,
    make_sample: Callable[[PreTrainedModel, Tensor], Callable[[], None]],
    label: str,
    num_outputs: int,
) -> pd.DataFrame:
    def sample(model: PreTrainedModel, prompt: int) -> Callable[[], None]:
        return make_sample(model, random_ids(prompt, weights.setup))

    models = {row: weights.build(row) for row in rows}
    points = [{"prompt": length} for length in prompt_lengths]
    return with_bound(measure_rows(models, points, sample, rounds, label), models, "prompt", num_outputs)
