# SPDX-License-Identifier: Apache-2.0
"""Flash attention next to `sdpa`: a tiny model in bf16 with the dynamic cache."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch

from .agreement import IN_BFLOAT16, compare, generated, random_prompts
from .checked_model import checked_model
from .row import MISSING, Row, tried
from .scale import Scale

PACKAGES = {"flash_attention_2": "flash_attn"}


def rows(scale: Scale) -> Iterator[Row]:
    check = f"tokens of {scale.attention} as those of sdpa, bf16"
    package = PACKAGES.get(scale.attention, "torch")
    if find_spec(package) is None:  # transformers would download a kernel in its place
        yield Row(check, MISSING, {"package": package.replace("_", "-")})
        return
    for name, fields in scale.looped.items():
        yield tried(check, partial(check_attention, f"{check}: {name}", scale, fields))


def check_attention(check: str, scale: Scale, fields: dict) -> Row:
    model = checked_model(**fields)
    model.to(scale.device, torch.bfloat16)  # type: ignore[arg-type]  # transformers' wrapper of it has lost `self`
    prompts = random_prompts(scale.prompts, model.config.vocab_size)
    expected = generated(model, prompts, scale.new_tokens)
    model.set_attn_implementation(scale.attention)
    return compare(check, expected, generated(model, prompts, scale.new_tokens), IN_BFLOAT16)
