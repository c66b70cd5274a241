# SPDX-License-Identifier: Apache-2.0
"""Check on a GPU what has been checked on a CPU, and measure what only a GPU can: `check_on_gpu.json` and `.md`.

    python -m serving_plt.vllm.check_on_gpu
    python -m serving_plt.vllm.check_on_gpu --parts tokens,latency --output runs/gpu
    python -m serving_plt.vllm.check_on_gpu --dry-run

Nothing is downloaded: weights are random, tiny for tokens and of 1.3B parameters for times. Each part has a process of
its own and 8 minutes. A check that fails or does not fit is a row, and the next part goes on; files are written after
each. With `--dry-run` all of it runs at a tiny size on the CPU. The status is 1 where a row differs or fails.
"""

import argparse
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .gpu_checks.alone import run_alone
from .gpu_checks.parts import ENVIRONMENT, PARTS
from .gpu_checks.report import write_report
from .gpu_checks.row import FAILED, WRONG, Row

MINUTES = 8.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", type=read_parts, default=list(PARTS), help=f"parts to run; default: {','.join(PARTS)}"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/check_on_gpu"), help="folder for the results; default: %(default)s"
    )
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="most minutes of each part; default: %(default)s"
    )
    parser.add_argument("--dry-run", action="store_true", help="run everything at a tiny size, on the CPU")
    args = parser.parse_args(arguments)
    command = shlex.join(
        ["python -m serving_plt.vllm.check_on_gpu", *(sys.argv[1:] if arguments is None else arguments)]
    )
    args.output.mkdir(parents=True, exist_ok=True)
    (environment, *_), said, seconds = run("environment", args)
    if environment.result == FAILED:
        parser.exit(1, f"{environment.figures['error']}\n")
    report: dict[str, Any] = {"command": command, "dry run": args.dry_run, "environment": environment.figures}
    report |= {"parts": args.parts, "seconds": {}, "rows": [], "logs": {}}
    for name in args.parts:
        print(f"{name}, at most {args.minutes:g} minutes", flush=True)
        rows, said, seconds = run(name, args)
        for row in rows:
            print(f"  {row.check}: {row.result}", flush=True)
        report["rows"] += [{"part": name} | asdict(row) for row in rows]
        report["logs"][name], report["seconds"][name] = said, seconds
        write_report(args.output, report)
    print(f"Wrote {args.output.resolve()}")
    if any(row["result"] in WRONG for row in report["rows"]):
        raise SystemExit(1)


def run(name: str, args: argparse.Namespace) -> tuple[list[Row], list[str], float]:
    """The rows of a part, the end of its log, and its seconds."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        part = ENVIRONMENT if name == "environment" else PARTS[name]
        rows, said = run_alone(part, Path(folder), args.minutes, args.dry_run)
    return rows, said, round(time.monotonic() - started, 1)


def read_parts(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"must be some of {','.join(PARTS)}, got {unknown[0]!r}")
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    main()
