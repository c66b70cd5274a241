# SPDX-License-Identifier: Apache-2.0
"""An engine in a process of its own, and its times: of a decoded token, and to the first token of a prompt."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from configuration_plt import PLTConfig
from conversion_plt.plan.plan import expected_shapes
from measuring_plt.rows import ALL_ROWS, IN_TURN, LOOPED_ROWS, PRUNED
from measuring_plt.sizes import SIZES

ROWS = {row.name: row for rows in LOOPED_ROWS.values() for row in rows}
ROWS |= {name: ALL_ROWS[name] for name in (IN_TURN, PRUNED)}
REQUEST = 8192  # tokens of a request at most, unless a longer prompt is measured
CONTEXT = 32  # tokens in the cache when decoding begins
WARM_STEPS = 2  # that decode before those which count
LEAST_KV = 1 << 30  # bytes
SLACK = 512  # tokens of a request, for blocks that are not full and a page of the carry
FEW_ROWS = (1, 2, 3, 4, 8)  # for the projections alone, where the hardware decides the cost of further loops


@dataclass(frozen=True)
class Plan:
    """The measurements of each row.

    Attributes:
        size: a name in `SIZES`.
        dtype: the dtype of weights and cache.
        batches: numbers of requests that decode together.
        prompts: lengths of a prompt that is prefilled alone, in one step.
        steps: the number of decoding steps, of which the median counts.
        eager: whether to run without vLLM's compiler and graphs.
        contexts: tokens in the cache when decoding begins.
        kv_bytes: the size of each engine's cache.
    """

    size: str
    dtype: str
    batches: list[int]
    prompts: list[int]
    steps: int
    eager: bool
    contexts: tuple[int, ...] = (CONTEXT,)
    kv_bytes: int = LEAST_KV

    @property
    def longest_request(self) -> int:
        """Tokens that a request can have."""
        return max(REQUEST, max(self.prompts, default=0) + SLACK)


Pools = dict[str, ProcessPoolExecutor]  # by row: one process, with its engine


def ask(pools: Pools, function: Callable[..., float], *arguments: int) -> dict[str, float]:
    """Milliseconds of all rows, one after another."""
    return {row: 1000 * pool.submit(function, *arguments).result() for row, pool in pools.items()}


def kv_bytes_needed(row: str, plan: Plan) -> int:
    """Bytes of a row's cache that hold any of the plan's batches, were every window as long as its request."""
    fields = SIZES[plan.size] | ROWS[row].fields
    config = PLTConfig(**fields)
    assert config.num_key_value_heads is not None and config.head_dim is not None  # the config has set both
    runs = sum(len(stage.layers) * len(stage.loops) for stage in config.stages)
    elements = 2 * runs * config.num_key_value_heads * config.head_dim
    lengths = [max(plan.batches) * (grown(context, plan.steps) + SLACK) for context in plan.contexts]
    tokens = max([*lengths, *(length + SLACK for length in plan.prompts)])
    return max(LEAST_KV, tokens * elements * getattr(torch, plan.dtype).itemsize)


@dataclass
class Held:
    """Requests of this process that decode; their contexts may still grow by so many tokens."""

    batch_size: int
    context: int
    names: list[str]
    left: int


ENGINES: list[Any] = []  # of this process: one, once it is open
HELD: list[Held] = []  # none, or the batch that has decoded last


def open_engine(row: str, plan: Plan) -> dict[str, Any]:
    """Start the engine of this process; what there is to know of it."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    with TemporaryDirectory() as folder:
        tokens = {"max_position_embeddings": plan.longest_request, "bos_token_id": None, "eos_token_id": None}
        config = PLTConfig(**SIZES[plan.size] | tokens | ROWS[row].fields)
        config.architectures = ["PLTForCausalLM"]
        config.save_pretrained(folder)
        # the folder does not say whether loops run in one pass
        ENGINES.append(start(folder, plan, config.one_pass, prunes=row == PRUNED))
    return {
        "row": row,
        "bytes after loading": resident("VmRSS"),
        # by the config: vLLM packs weights in its own way, where they are no parameters any more
        "parameters": sum(prod(shape) for shape in expected_shapes(config).values()),
        "threads": torch.get_num_threads(),
        "KV bytes per token": kv_bytes_per_token(ENGINES[0]),
        "longest request": plan.longest_request,
    }


@torch.inference_mode()
def projections(num_rows: int, steps: int) -> float:
    """Seconds of all layers' projections and MLPs for a few rows, without attention and norms."""

    def of_model(model: Any) -> float:
        weight = model.model.norm.weight
        hidden_states = torch.randn(num_rows, model.config.hidden_size, dtype=weight.dtype, device=weight.device)
        times = []
        for _ in range(steps + 1):
            started = time.perf_counter()
            for layer in model.model.layers:
                states, _ = layer.self_attn.qkv_proj(hidden_states)
                layer.self_attn.o_proj(states[:, : layer.self_attn.o_proj.input_size_per_partition].contiguous())
                layer.mlp(hidden_states)
            if hidden_states.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return median(times[1:])

    return ENGINES[0].apply_model(of_model)[0]


def start(folder: str, plan: Plan, one_pass: bool, prunes: bool) -> Any:
    from vllm import LLM  # starts threads and reads the environment

    together = min(REQUEST, max(plan.batches) * max(plan.contexts))  # longer ones come in chunks
    return LLM(
        folder,
        hf_overrides={"one_pass": one_pass},
        load_format="dummy",
        dtype=plan.dtype,
        enforce_eager=plan.eager,
        skip_tokenizer_init=True,
        max_model_len=plan.longest_request,
        max_num_batched_tokens=max([*plan.prompts, together]),
        kv_sharing_fast_prefill=prunes,
        max_num_seqs=max(plan.batches),
        kv_cache_memory_bytes=plan.kv_bytes,
        gpu_memory_utilization=0.1,  # as much must be free at the start, beside the other rows
        enable_prefix_caching=False,
    )


def resident(kind: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def kv_bytes_per_token(llm: Any) -> float:
    """Bytes a token for a request of the greatest length, by vLLM's count of such requests in its memory."""
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    core, config = llm.llm_engine.engine_core.engine_core, llm.llm_engine.vllm_config
    requests = get_max_concurrency_for_kv_cache_config(config, core.scheduler.kv_cache_config)
    return config.cache_config.kv_cache_memory_bytes / (requests * config.model_config.max_model_len)


def add(name: str, length: int, max_tokens: int) -> None:
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    ENGINES[0].llm_engine.add_request(name, TokensPrompt(prompt_token_ids=[7] * length), params)


class TooLittleRoom(RuntimeError):
    """The cache does not hold all requests of a batch at once."""


def timed_step(num_requests: int) -> float:
    """Seconds of a step that brings a token of each of so many requests.

    Raises:
        TooLittleRoom: it brings fewer, because some wait.
    """
    started = time.perf_counter()
    outputs = ENGINES[0].llm_engine.step()
    seconds = time.perf_counter() - started
    if len(outputs) != num_requests:
        raise TooLittleRoom(f"The cache must hold {num_requests} requests at once, got tokens of {len(outputs)}.")
    return seconds


def finish(names: list[str]) -> None:
    """End these requests, and what is under way of them."""
    engine = ENGINES[0].llm_engine
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()


def wait_for_tokens(names: list[str], most: int) -> None:
    """Step until each of these requests has a token.

    Raises:
        TooLittleRoom: some have none after `most` steps.
    """
    waiting = set(names)
    for _ in range(most):
        waiting -= {output.request_id for output in ENGINES[0].llm_engine.step() if output.outputs[0].token_ids}
        if not waiting:
            return
    raise TooLittleRoom(f"The cache must hold {len(names)} requests at once, got no token of {len(waiting)} of them.")


def grown(context: int, steps: int) -> int:
    """Tokens of a request at most, of a batch that decodes after so many: an eighth more, or as many as it must."""
    return context + max(context // 8, steps + WARM_STEPS)


def decode(batch_size: int, steps: int, context: int = CONTEXT) -> float:
    """Seconds of a step in which every request decodes one token.

    The requests stay for the next call with the same batch and context, until their contexts have grown by an eighth:
    a long prefill costs more than all rounds of its decoding.
    """
    if not HELD or (HELD[0].batch_size, HELD[0].context) != (batch_size, context):
        release()
        HELD.append(admitted(batch_size, context, grown(context, steps) - context))
    try:
        for _ in range(WARM_STEPS):
            timed_step(batch_size)
        seconds = median(timed_step(batch_size) for _ in range(steps))
    except TooLittleRoom:
        release()
        raise
    HELD[0].left -= WARM_STEPS + steps
    if HELD[0].left < WARM_STEPS + steps:
        release()
    return seconds


def admitted(batch_size: int, context: int, growth: int) -> Held:
    """Requests with a token each, after a prefill."""
    names = [f"{context}-{batch_size}-{number}" for number in range(batch_size)]
    chunks = ceil(batch_size * context / ENGINES[0].llm_engine.vllm_config.scheduler_config.max_num_batched_tokens)
    most = 2 * chunks + 4  # steps of the prefill: a chunk may be cut at a block, and two steps be under way
    for name in names:
        add(name, context, most + growth + 4)
    try:
        wait_for_tokens(names, most)
    except TooLittleRoom:
        finish(names)
        raise
    return Held(batch_size, context, names, growth)


def release() -> None:
    """End the requests that stay, if there are any."""
    while HELD:
        finish(HELD.pop().names)


def prefill(length: int) -> float:
    """Seconds to the first token of a prompt alone."""
    release()
    name = f"prompt-{length}"
    started = time.perf_counter()
    add(name, length, 1)
    wait_for_tokens([name], 4)  # two steps may be under way
    seconds = time.perf_counter() - started
    finish([])
    return seconds
