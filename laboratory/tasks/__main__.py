# SPDX-License-Identifier: Apache-2.0
"""Measure what each mechanism of PLT buys: train the rows of the ablation on a task, and write results and tables.

    python -m laboratory.tasks reach
    python -m laboratory.tasks hops --only plt-2 --seeds 1 2 --budget 60

A run that has its result in `results/NAME` is not repeated; stop it at any time, and start it again to go on. Start it
twice to share the work between two processes. Each process uses one thread, which is fastest for models this small.
`--list` shows the experiments.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from transformers.utils import logging

from . import load, names
from .harness.definition import TUNING_SEED, Cell, Experiment, Run
from .harness.plan import mean_bits, missing_runs, select_cells
from .harness.report import write_report
from .harness.store import Store
from .harness.train import measure

SEEDS = [1, 2, 3]
PATIENCE = 10  # seconds until it is looked again whether another process has finished its run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="name of the experiment")
    parser.add_argument("--list", action="store_true", help="show the experiments, and how much of each is done")
    parser.add_argument("--only", metavar="ROW", help="run the cells of one row")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="seeds, from 1 on; default: 1 2 3")
    parser.add_argument(
        "--budget", type=float, default=math.inf, metavar="MINUTES", help="minutes after which no run starts"
    )
    parser.add_argument(
        "--plots-only", action="store_true", help="write tables and plots of the results, and run nothing"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the results; default: results"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    try:
        if args.list:
            list_experiments(args.results)
            return
        experiment = load(args.name)
        cells = select_cells(experiment, args.only)
        if min(args.seeds) <= TUNING_SEED:
            raise ValueError(f"`--seeds` must be above {TUNING_SEED}, the seed of tuning, got {min(args.seeds)}.")
        store = Store(args.results / experiment.name)
        if not args.plots_only:
            list(missing_runs(experiment, cells, args.seeds, store))  # reads the results there are
        store.results()
    except ValueError as error:
        parser.error(str(error))
    if not args.plots_only:
        work(experiment, cells, args.seeds, store, time.monotonic() + 60 * args.budget)
    write_report(experiment, store)


def list_experiments(results: Path) -> None:
    for name in names():
        experiment, store = load(name), Store(results / name)
        missing = len(list(missing_runs(experiment, list(experiment.cells), SEEDS, store)))
        done = len(store.results())
        print(f"{name}: {experiment.question} Runs: {done} done, {missing} to be started now.")


def work(experiment: Experiment, cells: list[Cell], seeds: list[int], store: Store, deadline: float) -> None:
    """Make every missing run that no other process is making, until there is none or the time is over."""
    while runs := list(missing_runs(experiment, cells, seeds, store)):
        if time.monotonic() > deadline:
            return
        # one at a time: what comes next depends on what has been found
        if not any(make(run, store) for run in runs):
            time.sleep(PATIENCE)


def make(run: Run, store: Store) -> bool:
    """Make a run unless another process has or does; whether it was made."""
    with store.claim(run) as is_ours:
        if is_ours:
            result = measure(run)
            store.write(run, result)
            print(f"{run.name}: {mean_bits(result):.4f} bits, {result['seconds']:.0f} s", flush=True)
    return is_ours


if __name__ == "__main__":
    main()
