# SPDX-License-Identifier: Apache-2.0
"""Peak memory of each row alone, by phase: loading, prefill, decoding."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from measuring_plt.device_bytes import forget_peak, peak_bytes
from measuring_plt.models import SharedWeights, random_ids
from measuring_plt.rows import Row as Model
from modeling_plt.names_plt import THEIRS

from .row import MEASURED, Row, tried
from .scale import Scale
from .timed import TIMED, setup_of

TOKENS = 16  # decoded


def rows(scale: Scale) -> Iterator[Row]:
    length = max(scale.prompt_lengths)
    for model in TIMED:
        check = f"peak memory, {scale.dtype}, {model.name}, prompt of {length}, batch 1"
        yield tried(check, partial(phases, check, scale, model, length))
        gc.collect()  # the model before the next


@torch.inference_mode()
def phases(check: str, scale: Scale, row: Model, length: int) -> Row:
    setup, found = setup_of(scale), {}

    def peak_of(phase: str, function: Callable[[], Any]) -> Any:
        forget_peak(setup.device)
        result = function()
        found[f"{phase}, MB"] = peak_bytes(setup.device) / 1e6
        return result

    def decode(cache: object) -> None:
        token = random_ids(1, setup)
        for _ in range(TOKENS):
            token = model(token, use_cache=True, **{THEIRS: cache}).logits[:, -1:].argmax(-1)

    input_ids = random_ids(length, setup)
    model = peak_of("load", lambda: SharedWeights(setup).build(row))
    cache = peak_of("prefill", lambda: model(input_ids, use_cache=True, logits_to_keep=1)[THEIRS])
    peak_of("decode", lambda: decode(cache))
    return Row(check, MEASURED, found)
