# SPDX-License-Identifier: Apache-2.0
"""What the loops of a PLT cost in vLLM, next to a plain model and a vanilla loop: latency, throughput, memory.

    python -m serving_plt.benchmark --output results/serving/bfloat16
    python -m serving_plt.benchmark --size tiny --dtype float32 --batches 1 2 --prompts 64 --output runs/serving

Weights are random, of one size in all rows. Each row has an engine in a process of its own, and all of them are alive:
in each round they take turns, so that a ratio compares what ran within seconds. The median of the rounds counts.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from benchmarks_plt.rows import LOOP, PLT
from configuration_plt import PLTConfig
from conversion_plt.plan import expected_shapes

from .benchmark_report import write_report

ROWS: dict[str, dict[str, Any]] = {  # fields of PLTConfig
    "plain": {"num_loops": 1},
    "loop-2": {"num_loops": 2} | LOOP,
    "plt-2, in turn": {"num_loops": 2, "one_pass": False} | PLT,
    "plt-2": {"num_loops": 2} | PLT,
    "plt-3": {"num_loops": 3} | PLT,
}
COMMON = {"vocab_size": 32000, "max_position_embeddings": 8192, "bos_token_id": None, "eos_token_id": None}
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "0.3b": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16},
    "1.2b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 20, "num_attention_heads": 32},
}
CONTEXT = 32  # tokens in the cache when decoding begins
FEW_ROWS = (1, 2, 3, 4, 8)  # of the projections alone: what further loops cost there is the hardware's


@dataclass(frozen=True)
class Plan:
    """What is measured of each row.

    Attributes:
        size: a name in `SIZES`.
        dtype: of weights and cache.
        batches: numbers of requests that decode together.
        prompts: lengths of a prompt that is prefilled alone, in one step.
        steps: that decode, of which the median counts.
        eager: without vLLM's compiler and graphs.
    """

    size: str
    dtype: str
    batches: list[int]
    prompts: list[int]
    steps: int
    eager: bool


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.3b", help="default: %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all; plain always runs")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 32], help="default: 1 4 32")
    parser.add_argument("--prompts", nargs="+", type=int, default=[1024, 2048], help="default: 1024 2048")
    parser.add_argument("--steps", type=int, default=16, help="that decode in each round; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="with vLLM's compiler, and graphs where it has them")
    parser.add_argument("--output", type=Path, required=True, help="folder for the table, the JSON and the plot")
    args = parser.parse_args(arguments)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    plan = Plan(args.size, args.dtype, args.batches, args.prompts, args.steps, not args.compile)
    rows = list(dict.fromkeys(["plain", *args.rows]))
    args.output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # memory is that of a row alone, so each has a process; all wait for their turn in each round
        pools = {row: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for row in rows}
        engines = [pools[row].submit(open_engine, row, plan).result() for row in tqdm(rows, unit="engine")]
        rounds: list[dict[str, Any]] = []
        for _ in tqdm(range(args.rounds), unit="round"):
            rounds.append(one_round(pools, plan))
            memory = [pools[row].submit(resident, "VmHWM").result() for row in rows]
            for engine, most in zip(engines, memory, strict=True):
                engine["bytes at most"] = most
            write_report(args.output, asdict(plan), engines, rounds)


def one_round(pools: dict[str, ProcessPoolExecutor], plan: Plan) -> dict[str, Any]:
    """Milliseconds of all rows, one row after another for each batch and prompt: `{kind: {number: {row: ms}}}`."""

    def ask(rows: Iterable[str], function: Callable[..., float], *arguments: int) -> dict[str, float]:
        return {row: 1000 * pools[row].submit(function, *arguments).result() for row in rows}

    return {
        "decode": {str(size): ask(pools, decode, size, plan.steps) for size in plan.batches},
        "prefill": {str(length): ask(pools, prefill, length) for length in plan.prompts},
        "projections": {str(number): ask(["plain"], projections, number, plan.steps) for number in FEW_ROWS},
    }


ENGINES: list[Any] = []  # of this process: one, once it is open


def open_engine(row: str, plan: Plan) -> dict[str, Any]:
    """Start the engine of this process; what there is to know of it."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    with TemporaryDirectory() as folder:
        config = PLTConfig(**COMMON | SIZES[plan.size] | {"num_key_value_heads": 4, "sliding_window": 64} | ROWS[row])
        config.architectures = ["PLTForCausalLM"]
        config.save_pretrained(folder)
        ENGINES.append(start(folder, plan))
    loaded = resident("VmRSS")
    # the first of each takes longer
    for size in plan.batches:
        decode(size, steps=1)
    for length in plan.prompts:
        prefill(length)
    return {
        "row": row,
        "bytes after loading": loaded,
        # by the config: vLLM packs weights in its own way, where they are no parameters any more
        "parameters": sum(prod(shape) for shape in expected_shapes(config).values()),
        "threads": torch.get_num_threads(),
        "KV bytes per token": kv_bytes_per_token(ENGINES[0]),
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


def start(folder: str, plan: Plan) -> Any:
    from vllm import LLM  # starts threads and reads the environment

    longest = max([*plan.prompts, max(plan.batches) * CONTEXT])  # of a step
    return LLM(
        folder,
        load_format="dummy",
        dtype=plan.dtype,
        enforce_eager=plan.eager,
        skip_tokenizer_init=True,
        max_model_len=COMMON["max_position_embeddings"],
        max_num_batched_tokens=longest,
        max_num_seqs=max(plan.batches),
        kv_cache_memory_bytes=1 << 30,
        gpu_memory_utilization=0.1,  # as much must be free at the start, beside the other rows
        enable_prefix_caching=False,
    )


def resident(kind: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def kv_bytes_per_token(llm: Any) -> float:
    """Of a request of the greatest length, by vLLM's count of how many such fit into its memory."""
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    core, config = llm.llm_engine.engine_core.engine_core, llm.llm_engine.vllm_config
    requests = get_max_concurrency_for_kv_cache_config(config, core.scheduler.kv_cache_config)
    return config.cache_config.kv_cache_memory_bytes / (requests * config.model_config.max_model_len)


def add(name: str, length: int, max_tokens: int) -> None:
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    ENGINES[0].llm_engine.add_request(name, TokensPrompt(prompt_token_ids=[7] * length), params)


def timed_step() -> float:
    started = time.perf_counter()
    ENGINES[0].llm_engine.step()
    return time.perf_counter() - started


def finish() -> None:
    while ENGINES[0].llm_engine.has_unfinished_requests():
        ENGINES[0].llm_engine.step()


def decode(batch_size: int, steps: int) -> float:
    """Seconds of a step in which every request decodes one token."""
    for number in range(batch_size):
        add(f"{batch_size}-{number}", CONTEXT, steps + 3)
    for _ in range(3):  # the prefill, and two to warm up
        timed_step()
    times = [timed_step() for _ in range(steps)]
    finish()
    return median(times)


def prefill(length: int) -> float:
    """Seconds to the first token of a prompt alone."""
    add(f"prompt-{length}", length, 1)
    seconds = timed_step()
    finish()
    return seconds


if __name__ == "__main__":
    main()
