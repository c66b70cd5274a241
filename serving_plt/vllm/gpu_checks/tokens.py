# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of `generate` on the GPU next to the CPU's, in float32 with a tiny model."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from modeling_plt import PLTForCausalLM

from .agreement import IN_FLOAT32, Answer, compare, generated, random_prompts
from .checked_model import checked_model
from .row import Row, tried
from .scale import Scale

WAYS = {  # the mode of `torch.compile`
    "eager, dynamic cache": None,
    "static cache, torch.compile": "default",
    "static cache, CUDA graphs": "reduce-overhead",
}


def rows(scale: Scale) -> Iterator[Row]:
    torch.set_float32_matmul_precision("highest")  # a CPU has no TF32
    for way, mode in WAYS.items():
        for name, fields in scale.looped.items():
            check = f"tokens as the CPU's, float32: {name}, {way}"
            yield tried(check, partial(check_tokens, check, scale, mode, fields))


def check_tokens(check: str, scale: Scale, mode: str | None, fields: dict[str, Any]) -> Row:
    model = checked_model(**fields)
    prompts = random_prompts(scale.prompts, model.config.vocab_size)
    expected = generated(model, prompts, scale.new_tokens)
    before = counters["inductor"]["cudagraph_skips"]
    model.to(scale.device)  # type: ignore[arg-type]  # transformers' wrapper of it has lost `self`
    row = compare(check, expected, answers(model, prompts, scale.new_tokens, mode), IN_FLOAT32)
    skipped = counters["inductor"]["cudagraph_skips"] - before
    return Row(row.check, row.result, {**row.figures, **({"CUDA graphs skipped": skipped} if mode else {})})


def answers(model: PLTForCausalLM, prompts: list[list[int]], new_tokens: int, mode: str | None) -> list[Answer]:
    if mode is None:
        return generated(model, prompts, new_tokens)
    torch._dynamo.reset()  # each model is another graph of the same code
    compiled = CompileConfig(mode=mode, fullgraph=True, dynamic=False)
    # of itself, `generate` compiles on a GPU only
    compiled._compile_all_devices = True  # type: ignore[assignment]  # it starts as None, so mypy thinks that it stays
    return generated(model, prompts, new_tokens, cache_implementation="static", compile_config=compiled)
