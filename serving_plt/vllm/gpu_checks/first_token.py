# SPDX-License-Identifier: Apache-2.0
"""The time to the first token of a prompt alone."""

from collections.abc import Iterator
from functools import partial

from transformers.modeling_utils import PreTrainedModel

from measuring_plt.greedy import first_token
from measuring_plt.models import SharedWeights, random_ids
from measuring_plt.turns import take_turns

from .ratios import figures
from .row import MEASURED, Row, tried
from .scale import Scale
from .timed import TIMED, setup_of

ROUNDS = 3  # at most: the longest prompts take seconds on a small GPU


def rows(scale: Scale) -> Iterator[Row]:
    weights = SharedWeights(setup_of(scale))
    models = {row.name: weights.build(row) for row in TIMED}
    for length in scale.prompt_lengths:
        check = f"first token, {scale.dtype}, prompt of {length}"
        yield tried(check, partial(time_prompt, check, scale, models, length))


def time_prompt(check: str, scale: Scale, models: dict[str, PreTrainedModel], length: int) -> Row:
    input_ids = random_ids(length, setup_of(scale))
    samples = {name: first_token(model, input_ids) for name, model in models.items()}
    return Row(check, MEASURED, figures(take_turns(samples, min(scale.rounds, ROUNDS), check)))
