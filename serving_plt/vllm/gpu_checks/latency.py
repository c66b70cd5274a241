# SPDX-License-Identifier: Apache-2.0
"""A decode step of a PLT and of a loop, next to a plain model's: with CUDA graphs, and eager."""

from collections.abc import Iterator
from functools import partial

from torch._dynamo.utils import counters
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.greedy import TOKENS, greedy_steps
from measuring_plt.models import SharedWeights
from measuring_plt.turns import WARMUP_ROUNDS, take_turns

from .ratios import figures
from .row import MEASURED, Row, tried
from .scale import Scale
from .timed import TIMED, setup_of


def rows(scale: Scale) -> Iterator[Row]:
    weights = SharedWeights(setup_of(scale))
    models = {row.name: weights.build(row) for row in TIMED}
    for batch in scale.batches:
        for way, is_compiled in (("static cache, CUDA graphs", True), ("dynamic cache, eager", False)):
            check = f"decode step, {scale.dtype}, {way}, batch {batch}, context {scale.context}"
            yield tried(check, partial(time_steps, check, scale, models, batch, is_compiled))


def time_steps(check: str, scale: Scale, models: dict[str, PreTrainedModel], batch: int, is_compiled: bool) -> Row:
    longest = scale.context + TOKENS * (WARMUP_ROUNDS + scale.rounds) if is_compiled else None
    before = counters["inductor"]["cudagraph_skips"]
    samples = {name: greedy_steps(model, batch, scale.context, longest) for name, model in models.items()}
    found = figures(take_turns(samples, scale.rounds, check, TOKENS))
    skipped = counters["inductor"]["cudagraph_skips"] - before
    return Row(check, MEASURED, found | ({"CUDA graphs skipped": skipped} if is_compiled else {}))
