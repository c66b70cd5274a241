# SPDX-License-Identifier: Apache-2.0
"""vLLM's server under load: plain, PLT-2 with both loops in one pass, and PLT-2 with one after another.

    python -m laboratory.load --output results/serving/load-0.3b
    python -m laboratory.load --size tiny --dtype float32 --minutes 0.2 --output runs/load

Every row has a server of its own, with random weights. All run, and take turns under `vllm bench serve`, round after
round and rate after rate, while further clients hang up before their answers end. After each turn the server must say
what it said at the start, and hold no page of its cache; else the command fails. A run that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from measuring_plt.sizes import DENSE_SIZES

from .clients import bench, leaving, warm_up
from .memory import resident
from .plan import SHARES, Piece, Plan, pieces
from .report import write_report
from .served import Served, servers, setup_of
from .soundness import UnsoundError, check, said
from .store import Store

LENGTHS = {"tiny": (64, 16)}  # tokens of prompts and of answers
USUAL_LENGTHS = (256, 64)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    store = Store(args.output)
    prompt, tokens = LENGTHS.get(args.size, USUAL_LENGTHS)
    rates = args.rates or store.rates() or []
    plan = Plan(args.size, args.dtype, prompt, tokens, rates, args.minutes, args.rounds, args.leaving)
    with TemporaryDirectory() as temporary, servers(Path(temporary), plan) as running:
        before = {row: said(served.server, plan) for row, served in running.items()}
        most = {row: warm_up(served, plan) for row, served in running.items()}
        if not plan.rates:
            plan = replace(plan, rates=[float(f"{share * most['plain']:.2g}") for share in SHARES])
        store.follow(plan)
        for piece in tqdm([*pieces(plan)], unit="turn"):
            if not store.has(piece):
                store.write(piece, run(piece, plan, running[piece.row], before[piece.row]))
                write_report(args.output, plan, setup_of(plan), store.results(plan))
    print(f"Wrote {args.output.resolve()}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=DENSE_SIZES, default="0.3b", help="of the models; default: %(default)s")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        help="requests that come in a second; default: 0.25, 0.5 and 1.25 of what plain serves when all come at once",
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="in which requests come to a row, in all; default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="in which all rows take turns; default: %(default)s")
    parser.add_argument(
        "--leaving",
        type=float,
        default=0.1,
        help="further requests whose clients hang up, for each of the rate's; default: %(default)s",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for tables, plots and the turns' results")
    args = parser.parse_args(arguments)
    for name, least in (("rounds", 1), ("leaving", 0)):
        if getattr(args, name) < least:
            parser.error(f"`--{name}` must be at least {least}, got {getattr(args, name)}.")
    for name, values in (("minutes", [args.minutes]), ("rates", args.rates or [])):
        if any(value <= 0 for value in values):
            parser.error(f"`--{name}` must be above 0, got {min(values)}.")
    return args


def run(piece: Piece, plan: Plan, served: Served, before: list[list[int]]) -> dict[str, float]:
    """A turn of a row: what its clients saw, and its server's memory around it.

    Raises:
        UnsoundError: the server is not as it was before; a request has failed.
    """
    requests = max(1, round(piece.rate * plan.seconds))
    server = served.server
    memory = resident(server)
    with leaving(server, plan, piece.rate * plan.leaving, piece.round) as read:
        figures = bench(served, plan, piece.rate, requests, piece.round)
    if figures["failed"]:
        raise UnsoundError(f"All {requests} requests must be answered, got {figures['failed']} that failed.")
    check(server, plan, before)
    return figures | {"left": len(read), "bytes before": memory, "bytes after": resident(server)}


if __name__ == "__main__":
    main()
