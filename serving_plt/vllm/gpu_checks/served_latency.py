# SPDX-License-Identifier: Apache-2.0
"""The time of a step and of a prompt in vLLM: plain, a loop and a PLT, each in an engine of its own process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import torch

from measuring_plt.device_bytes import free_bytes
from measuring_plt.processes import own_process

from ..timed_engine import Plan, Pools, ask, decode, open_engine, prefill
from .ratios import figures
from .row import MEASURED, Row, tried
from .scale import Scale

ROUNDS = 3
BESIDE_THE_CACHE = 5 << 30  # bytes of an engine at most: weights, activations, graphs
LEAST = 1 << 30


def rows(scale: Scale) -> Iterator[Row]:
    share = int(0.9 * free_bytes(torch.device(scale.device))) // len(scale.served_rows) - BESIDE_THE_CACHE
    plan = Plan(
        size=scale.size,
        dtype=scale.dtype,
        batches=scale.served_batches,
        prompts=scale.served_prompts,
        steps=scale.steps,
        eager=scale.eager,
        contexts=tuple(scale.served_contexts),
        kv_bytes=min(scale.kv_bytes, max(share, LEAST)),
    )
    with ExitStack() as stack:
        # all are alive, and take turns
        pools = {row: stack.enter_context(own_process()) for row in scale.served_rows}
        for row, pool in pools.items():
            pool.submit(open_engine, row, plan).result()
        yield from measured(plan, pools)


def measured(plan: Plan, pools: Pools) -> Iterator[Row]:
    for context in plan.contexts:
        for batch in plan.batches:
            check = f"vLLM, decode step, {plan.dtype}, batch {batch}, context {context}"
            yield tried(check, partial(in_turns, check, pools, decode, batch, plan.steps, context))
        for length in plan.prompts:
            if context == plan.contexts[0]:
                check = f"vLLM, first token, {plan.dtype}, prompt of {length}"
                yield tried(check, partial(in_turns, check, pools, prefill, length))


def in_turns(check: str, pools: Pools, function: Callable[..., float], *arguments: int) -> Row:
    rounds = [ask(pools, function, *arguments) for _ in range(1 + ROUNDS)]
    return Row(check, MEASURED, figures(rounds[1:]))  # the first of a kind takes longer
