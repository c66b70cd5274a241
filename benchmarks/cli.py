# SPDX-License-Identifier: Apache-2.0
"""The command `plt-bench`."""

import argparse
import dataclasses
import shlex
import signal
import sys
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

try:
    from benchmarks_plt.sections import COMMANDS, Run
except ModuleNotFoundError as error:
    raise SystemExit(f"plt-bench: {error}. Install the extra `bench`.") from None
from benchmarks_plt.models import Setup, SharedWeights, row_config
from benchmarks_plt.report import Section, write
from benchmarks_plt.rows import FIELDS_OF_ROWS, LLAMA, PLAIN, ROW_MEANINGS, ROWS, Row
from benchmarks_plt.setting import describe
from benchmarks_plt.sizes import SIZES, SWEEPS, Sweep
from configuration_plt.assignments import parse_assignments
from modeling_plt.few_rows import speed_up_few_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")

# options that only some commands read
READ_BY = {
    "rows": {"decode", "prefill", "train", "memory"},
    "batch_sizes": {"decode", "loops"},
    "contexts": {"decode", "loops", "memory"},
    "prompt_lengths": {"prefill", "memory"},
    "train_length": {"train", "memory"},
    "rounds": {"decode", "loops", "prefill", "train"},
    "compile": {"decode", "loops"},
    "few_rows": {"decode", "loops"},
}


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "plt-bench",
        description="Measure on this machine what a PLT costs beside plain and looped models; weights are random.",
        epilog=f"rows:\n{ROW_MEANINGS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=tuple(COMMANDS), default="all", help="what (default: all)")
    parser.add_argument("--size", choices=tuple(SIZES), default="0.5b", help="of the plain row (default: 0.5b)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of PLTConfig, for all rows"
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), metavar="ROW", help="beside plain (default: all)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    parser.add_argument("--attn-implementation", choices=ATTENTION, default="sdpa", help="default: sdpa")
    parser.add_argument(
        "--compile", action="store_true", default=None, help="decode with static caches and compiled steps"
    )
    parser.add_argument(
        "--few-rows", action="store_true", default=None, help="decode with swapped products (eager float32, AVX2)"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=positive, metavar="N", help="of decoding; loops: the first")
    parser.add_argument(
        "--contexts", nargs="+", type=positive, metavar="N", help="tokens in the cache; loops: the first"
    )
    parser.add_argument("--prompt-lengths", nargs="+", type=positive, metavar="N", help="memory: the longest")
    parser.add_argument("--train-length", type=positive, metavar="N", help="tokens of a training step")
    parser.add_argument("--rounds", type=positive, metavar="N", help="timed rounds, after the warm-up")
    parser.add_argument("--threads", type=positive, metavar="N", help="of the CPU (default: PyTorch's)")
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="folder (default: runs/bench)")
    return parser


def parse_args(arguments: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Arguments without contradictions; options that would have no effect are refused."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    for name, commands in READ_BY.items():
        if getattr(args, name) is not None and args.command not in commands | {"all"}:
            option = "--" + name.replace("_", "-")
            parser.error(f"{option} has no effect on {args.command}, only on {', '.join(sorted(commands))}")
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output must be a folder or new, got the file {str(args.output)!r}")
    return parser, args


def read_device(parser: argparse.ArgumentParser, text: str | None) -> torch.device:
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu, cuda or cuda:N, got {text!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {text}: PyTorch sees {torch.cuda.device_count()} GPUs here")
    return device


def read_fields(parser: argparse.ArgumentParser, size: str, assignments: list[str]) -> dict:
    """Fields of PLTConfig for all rows."""
    try:
        changes = parse_assignments(assignments)
    except ValueError as error:
        parser.error(f"--set {error}")
    for name in FIELDS_OF_ROWS:
        if name in changes:
            parser.error(f"--set cannot change {name}: each row has its own")
    fields = SIZES[size] | changes
    try:
        row_config(fields, PLAIN)
    except StrictDataclassError as error:
        parser.error(f"--set: {error.__cause__ or error}")
    return fields


def read_rows(parser: argparse.ArgumentParser, names: list[str] | None, fields: dict) -> list[Row]:
    """Plain and the rows of these names, in the order of `ROWS`."""
    rows = [row for row in ROWS.values() if names is None or row == PLAIN or row.name in names]
    config = row_config(fields, PLAIN)
    own_bias = config.attention_output_bias != config.attention_bias
    if LLAMA in rows and (config.qk_norm or config.sandwich_norm or own_bias):
        parser.error("--set gives the model what Llama does not have: leave the row llama out with --rows")
    return rows


def refuse_few_rows(
    parser: argparse.ArgumentParser, compiled: bool | None, device: torch.device, dtype: torch.dtype
) -> None:
    """Refuse swapped products where they would not be computed, or would not win."""
    if compiled:
        parser.error("--few-rows is for eager decoding: leave out --compile")
    try:
        speed_up_few_rows(torch.nn.Linear(1, 1, device=device, dtype=dtype))
    except ValueError as error:
        parser.error(f"--few-rows: {error}")


def read_sweep(args: argparse.Namespace, device: torch.device) -> Sweep:
    """What the size and the device suggest, with what the command line says instead."""
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name in ("batch_sizes", "contexts", "prompt_lengths", "train_length")
        if (value := getattr(args, name)) is not None
    }
    if args.rounds is not None:
        changes |= dict.fromkeys(("decode_rounds", "prefill_rounds", "train_rounds"), args.rounds)
    return dataclasses.replace(SWEEPS[args.size][device.type], **changes)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; files are written whenever a table is complete."""
    arguments = sys.argv[1:] if arguments is None else arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("plt-bench: terminated"))
    parser, args = parse_args(arguments)
    device = read_device(parser, args.device)
    fields = read_fields(parser, args.size, args.set)
    rows = read_rows(parser, args.rows, fields)
    dtype = DTYPES[args.dtype or ("bfloat16" if device.type == "cuda" else "float32")]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.few_rows:
        refuse_few_rows(parser, args.compile, device, dtype)
    setup = Setup(fields, device, dtype, args.attn_implementation, bool(args.compile), bool(args.few_rows))
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        setting = describe(shlex.join(["plt-bench", *arguments]), args.size, setup)
        print("\n".join(setting.lines()))
        run = Run(setup, SharedWeights(setup), read_sweep(args, device), rows, setting.headline)
        sections: list[Section] = []
        for measure in COMMANDS[args.command]:
            sections.append(measure(run))
            print(f"\n{sections[-1]}", flush=True)
            write(args.output, args.command, setting, sections)
    except (ImportError, OSError) as error:
        sys.exit(f"plt-bench: {error}")
    print(f"\nWrote {args.output.resolve()}")


if __name__ == "__main__":
    main()
