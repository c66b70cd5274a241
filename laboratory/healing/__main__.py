# SPDX-License-Identifier: Apache-2.0
"""Measure what healing brings: train sources, convert and heal them, next to what the same steps bring otherwise.

    python -m laboratory.healing
    python -m laboratory.healing --seeds 1 --runs runs/study --results results/healing

A vanilla loop becomes a PLT that shall be as good as its source, and a plain decoder one that shall be better than the
plain one with as much training. What has its result in `--results` is not repeated. About ten minutes a seed on a CPU.
"""

import argparse
import contextlib
import json
import shutil
import time
from pathlib import Path

import torch

from conversion_plt.convert import Request, convert
from conversion_plt.plan.to_plt import PLTStart
from training_plt.heal import __main__ as heal
from training_plt.heal.controls import CONTROLS_FILE, WORDS
from training_plt.pretrain import __main__ as pretrain

from ..report import write_whole
from ..setting import commit, machine
from .report import write_report
from .trainings import TRAININGS, Training


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds; default: 1 2 3")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/healing"), help="folder of the models; default: runs/healing"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/healing"), help="folder of the results; default: results/healing"
    )
    parser.add_argument(
        "--plots-only", action="store_true", help="write the table and the plot of the results, and run nothing"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for folder in (args.runs, args.results):
        folder.mkdir(parents=True, exist_ok=True)
    if not args.plots_only:
        for seed in args.seeds:
            for training in TRAININGS:
                if not result_file(args.results, training, seed).exists():
                    make(training, seed, args.runs, args.results)
                    write_report(args.results, TRAININGS)
    write_report(args.results, TRAININGS)


def result_file(results: Path, training: Training, seed: int) -> Path:
    return results / f"{training.name}_seed-{seed}.json"


def make(training: Training, seed: int, runs: Path, results: Path) -> None:
    """Train, after what it needs has been trained, and keep the held-out losses."""
    if training.source is not None:
        source = next(other for other in TRAININGS if other.name == training.source)
        if not (runs / f"{source.name}-{seed}" / "model.safetensors").exists():
            make(source, seed, runs, results)
    if training.heals:
        converted = runs / f"{training.source}-converted-{seed}"
        if not converted.exists():
            source_folder = str(runs / f"{training.source}-{seed}")
            convert(
                Request(
                    source_folder, converted, f"plt convert {source_folder} {converted} --to-plt", start=PLTStart()
                )
            )
    module, *options = training.command(runs, seed)
    folder, started = runs / f"{training.name}-{seed}", time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    with (runs / f"{training.name}-{seed}.log").open("w") as log, contextlib.redirect_stdout(log):
        {"heal": heal, "pretrain": pretrain}[module].main(options)
    losses = held_out_losses(folder)
    result = {
        "name": training.name,
        "seed": seed,
        "command": " ".join(["python -m", f"training_plt.{module}", *options]),
        "losses": losses,
        "controls": controls_of(folder),
        "seconds": round(time.perf_counter() - started, 1),
        "commit": commit(),
        "machine": machine(),
    }
    write_whole(result_file(results, training, seed), json.dumps(result, indent=1) + "\n")
    print(f"{training.name}, seed {seed}: {losses[-1][1]:.4f}, {result['seconds']:.0f} s", flush=True)


def held_out_losses(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses in nats per token, from the state that a run has saved."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def controls_of(folder: Path) -> dict[str, float]:
    """The last losses without what later loops read: all of `heal`, and that of loop 0 alone of other loops."""
    if (folder / CONTROLS_FILE).exists():
        controls = json.loads((folder / CONTROLS_FILE).read_text(encoding="utf-8"))
        return {name: controls[name] for name in WORDS}
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [entry["eval_loop_0_loss"] for entry in history if "eval_loop_0_loss" in entry]
    return {"loop_0_alone": losses[-1]} if losses else {}


if __name__ == "__main__":
    main()
