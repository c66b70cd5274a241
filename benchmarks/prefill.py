# SPDX-License-Identifier: Apache-2.0
"""Time to first token, by prompt length."""

from collections.abc import Callable

import pandas as pd
import torch
from transformers.modeling_utils import PreTrainedModel

from .models import SharedWeights, random_ids
from .rows import Row
from .timing import measure_rows


def first_token(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that fills a new cache with `input_ids` `[1, T]` and picks the next token."""

    @torch.inference_mode()
    def sample() -> None:
        model(input_ids, logits_to_keep=1, use_cache=True).logits[:, -1].argmax(-1)

    return sample


def measure_prefill(weights: SharedWeights, rows: list[Row], prompt_lengths: list[int], rounds: int) -> pd.DataFrame:
    def sample(model: PreTrainedModel, prompt: int) -> Callable[[], None]:
        return first_token(model, random_ids(prompt, weights.setup))

    points = [{"prompt": length} for length in prompt_lengths]
    return measure_rows(weights, rows, points, sample, rounds, "ms to first token")
