# SPDX-License-Identifier: Apache-2.0
"""The costs of a PLT's loops in vLLM, next to a plain model and a vanilla loop: latency, throughput, memory.

    python -m laboratory.serving --output results/serving/bfloat16
    python -m laboratory.serving --size tiny --dtype float32 --batches 1 2 --prompts 64 --output runs/serving
    python -m laboratory.serving --rows loop-2 loop-3 loop-4 plt-2 plt-3 plt-4 --batches 1 4 --prompts 1024 \
        --rounds 15 --output results/serving/loops-avx512

Weights are random, of one size in all rows. Each row has an engine in a process of its own, and all of them are alive:
in each round they take turns, so that a ratio compares what ran within seconds. The median of the rounds counts. With
the rows of the last command there is the parallel efficiency of 1 to 4 loops, too.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from measuring_plt.rows import IN_TURN
from measuring_plt.sizes import DENSE_SIZES
from serving_plt.vllm.timed_engine import (
    FEW_ROWS,
    ROWS,
    Plan,
    Pools,
    ask,
    decode,
    open_engine,
    prefill,
    projections,
    resident,
    warm_up,
)

from .report import write_report

USUAL_ROWS = ["plain", "loop-2", IN_TURN, "plt-2", "plt-3"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", choices=DENSE_SIZES, default="0.3b", help="size of the plain model; default: %(default)s"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="dtype of weights and cache; default: %(default)s",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS,
        default=USUAL_ROWS,
        help="kinds of models, plain always; default: %(default)s",
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        type=int,
        default=[1, 4, 32],
        help="numbers of requests that decode together; default: 1 4 32",
    )
    parser.add_argument(
        "--prompts", nargs="+", type=int, default=[1024, 2048], help="tokens of a prompt; default: 1024 2048"
    )
    parser.add_argument("--steps", type=int, default=16, help="decoding steps in each round; default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, in which all rows take turns; default: %(default)s"
    )
    parser.add_argument("--compile", action="store_true", help="use vLLM's compiler, and its graphs where it has them")
    parser.add_argument("--output", type=Path, required=True, help="folder for the table, the JSON and the plot")
    args = parser.parse_args(arguments)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    plan = Plan(args.size, args.dtype, args.batches, args.prompts, args.steps, not args.compile)
    rows = list(dict.fromkeys(["plain", *args.rows]))
    with ExitStack() as stack:
        # memory is that of a row alone, so each has a process; all wait for their turn in each round
        pools = {row: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for row in rows}
        engines = [pools[row].submit(open_engine, row, plan).result() for row in tqdm(rows, unit="engine")]
        for pool in pools.values():
            pool.submit(warm_up, plan).result()
        rounds: list[dict[str, Any]] = []
        for _ in tqdm(range(args.rounds), unit="round"):
            rounds.append(one_round(pools, plan))
            memory = [pools[row].submit(resident, "VmHWM").result() for row in rows]
            for engine, most in zip(engines, memory, strict=True):
                engine["bytes at most"] = most
            write_report(args.output, asdict(plan), engines, rounds)


def one_round(pools: Pools, plan: Plan) -> dict[str, Any]:
    """Milliseconds of all rows, one row after another for each batch and prompt: `{kind: {number: {row: ms}}}`."""
    plain = {"plain": pools["plain"]}
    return {
        "decode": {str(size): ask(pools, decode, size, plan.steps) for size in plan.batches},
        "prefill": {str(length): ask(pools, prefill, length) for length in plan.prompts},
        "projections": {str(number): ask(plain, projections, number, plan.steps) for number in FEW_ROWS},
    }


if __name__ == "__main__":
    main()
