# SPDX-License-Identifier: Apache-2.0
"""Time to first token, by prompt length."""

from collections.abc import Callable

import pandas as pd
from transformers.modeling_utils import PreTrainedModel

from .greedy import first_token
from .models import SharedWeights, random_ids
from .rows import Row
from .timing import measure_rows


def measure_prefill(weights: SharedWeights, rows: list[Row], prompt_lengths: list[int], rounds: int) -> pd.DataFrame:
    def sample(model: PreTrainedModel, prompt: int) -> Callable[[], None]:
        return first_token(model, random_ids(prompt, weights.setup))

    points = [{"prompt": length} for length in prompt_lengths]
    return measure_rows({row: weights.build(row) for row in rows}, points, sample, rounds, "ms to first token")
