# SPDX-License-Identifier: Apache-2.0
"""The costs of a PLT's loops in vLLM, next to a plain model and a vanilla loop: latency, throughput, memory.

    python -m laboratory.serving --output results/serving/bfloat16
    python -m laboratory.serving --size tiny --dtype float32 --batches 1 2 --prompts 64 --output runs/serving
    python -m laboratory.serving --rows loop-2 loop-3 loop-4 plt-2 plt-3 plt-4 --batches 1 4 --prompts 1024 \
        --rounds 15 --output results/serving/loops-avx512
    python -m laboratory.serving --rows plt-2 --batches 1 32 --contexts 32 4096 --beside before=../checkout \
        --output runs/serving

Weights are random, of one size in all rows. Each row has an engine in a process of its own, and all of them are alive:
in each round they take turns, so that a ratio compares what ran within seconds. The median of the rounds counts. With
the rows of the third command there is the parallel efficiency of 1 to 4 loops, too. `--beside` runs each of `--rows`
once more, with the code of another checkout.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from measuring_plt.processes import own_process
from measuring_plt.rows import IN_TURN
from measuring_plt.sizes import DENSE_SIZES
from serving_plt.vllm.timed_engine import (
    CONTEXT,
    FEW_ROWS,
    ROWS,
    Plan,
    Pools,
    ask,
    decode,
    kv_bytes_needed,
    open_engine,
    prefill,
    projections,
    resident,
)

from .beside import Lane, check_code, code_of, read_version
from .report import Measured, Place, write_report

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
        "--contexts",
        nargs="+",
        type=int,
        default=[CONTEXT],
        help=f"tokens in the cache when decoding begins; default: {CONTEXT}",
    )
    parser.add_argument(
        "--prompts", nargs="+", type=int, default=[1024, 2048], help="tokens of a prompt; default: 1024 2048"
    )
    parser.add_argument("--steps", type=int, default=16, help="decoding steps in each round; default: %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, in which all rows take turns; default: %(default)s"
    )
    parser.add_argument("--compile", action="store_true", help="use vLLM's compiler, and its graphs where it has them")
    parser.add_argument(
        "--beside",
        nargs="+",
        type=read_version,
        default=[],
        metavar="NAME=CHECKOUT",
        help="other versions of the code, each of which runs the rows, too",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the table, the JSON and the plot")
    args = parser.parse_args(arguments)
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"`--{name}` must be at least 1, got {getattr(args, name)}.")
    plan = Plan(
        args.size, args.dtype, args.batches, args.prompts, args.steps, not args.compile, contexts=tuple(args.contexts)
    )
    lanes = [Lane(row) for row in dict.fromkeys(["plain", *args.rows])]
    lanes += [Lane(row, *version) for version in args.beside for row in args.rows]
    with ExitStack() as stack:
        # memory is that of a row alone, so each has a process; all wait for their turn in each round
        pools = {lane.name: stack.enter_context(own_process()) for lane in lanes}
        engines = [opened(pools[lane.name], lane, plan) for lane in tqdm(lanes, unit="engine")]
        measured: Measured = {"decode": [], "prefill": [], "projections": []}
        for kind, point, one_round in tqdm(list(points(pools, plan)), unit="point"):
            one_round()  # the first takes longer
            measured[kind].append((point, [one_round() for _ in range(args.rounds)]))
            for engine in engines:
                engine["bytes at most"] = pools[engine["row"]].submit(resident, "VmHWM").result()
            write_report(args.output, asdict(plan), engines, measured)


def opened(pool: ProcessPoolExecutor, lane: Lane, plan: Plan) -> dict[str, Any]:
    """Start a row's process and its engine; what there is to know of both."""
    plan = replace(plan, kv_bytes=kv_bytes_needed(lane.row, plan))
    with code_of(lane.checkout):
        facts = pool.submit(open_engine, lane.row, plan).result()
    facts |= {"row": lane.name, "version": lane.version, "commit": check_code(pool, lane)}
    return facts | {"cache bytes": plan.kv_bytes}


def points(pools: Pools, plan: Plan) -> Iterator[tuple[str, Place, Callable[[], dict[str, float]]]]:
    """The kind of each measurement, its place in the table, and a round: milliseconds of all rows, one after another.

    All rounds of a point follow each other, so that a batch that decodes is prefilled once and not in each round.
    """
    for context in plan.contexts:
        for size in plan.batches:
            yield "decode", {"batch": size, "context": context}, partial(ask, pools, decode, size, plan.steps, context)
    for length in plan.prompts:
        yield "prefill", {"tokens": length}, partial(ask, pools, prefill, length)
    for number in FEW_ROWS:
        one_round = partial(ask, {"plain": pools["plain"]}, projections, number, plan.steps)
        yield "projections", {"rows": number}, one_round


if __name__ == "__main__":
    main()
