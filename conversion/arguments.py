# SPDX-License-Identifier: Apache-2.0
"""The arguments of `plt-convert`."""

import argparse
import shlex
from pathlib import Path

from .convert import Request
from .sources import all_sources
from .to_plt import PLTStart

USAGE = """\
plt-convert SOURCE TARGET [--to-plt ...]
       plt-convert inspect SOURCE"""


def source_table() -> str:
    """The sources, one a line: `model_type`, publisher's name, what it becomes."""
    return "\n".join(f"  {item.model_type:16} {item.title:20} {item.becomes}" for item in all_sources().values())


def convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "plt-convert",
        usage=USAGE,
        description="Turn a published checkpoint into a folder that loads as a Parallel Loop Transformer.",
        epilog=f"sources, by the `model_type` of their config:\n{source_table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="local folder or hub id")
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--loops", type=int, help="run a plain source as a loop of its whole stack")
    parser.add_argument(
        "--expected", type=Path, metavar="FILE", help="safetensors with `input_ids` and `logits` to reproduce"
    )
    parser.add_argument(
        "--ignore", nargs="+", default=[], metavar="FIELD", help="fields of the source's config to leave out"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read pickle weights, through `weights_only` loading"
    )
    parser.add_argument("--keep-nan", action="store_true", help="accept weights that hold NaN or infinity")
    plt = parser.add_argument_group("switch the PLT mechanisms on")
    plt.add_argument(
        "--to-plt", action="store_true", help="shift, shared KV and gated window; needed for what follows"
    )
    plt.add_argument("--window", type=int, help="keys a later loop sees of its own (default: the source's, or 64)")
    plt.add_argument("--embedding-scale", type=float, help="weight of the embedding in a later loop's input")
    plt.add_argument("--hidden-scale", type=float, help="weight of the previous loop's state in it")
    plt.add_argument(
        "--learned-scales", action=argparse.BooleanOptionalAction, default=None, help="make both parameters"
    )
    plt.add_argument("--gate-start", type=float, metavar="WEIGHT", help="weight of the shared KV in new gates")
    plt.add_argument("--text", type=Path, metavar="FILE", help="text to measure the distance to the source on")
    return parser


def inspect_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "plt-convert inspect", description="Say what a source is and what it would become; reads no weights."
    )
    parser.add_argument("source", help="local folder or hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    return parser


def read_request(arguments: list[str]) -> Request:
    """The request that a command line makes; options that would have no effect are refused."""
    parser = convert_parser()
    args = parser.parse_args(arguments)
    values = {
        "sliding_window": args.window,
        "embedding_scale": args.embedding_scale,
        "hidden_scale": args.hidden_scale,
        "learned_scales": args.learned_scales,
        "gate": args.gate_start,
    }
    if not args.to_plt and (args.text is not None or any(value is not None for value in values.values())):
        parser.error(
            "--window, --embedding-scale, --hidden-scale, --learned-scales, --gate-start and --text need --to-plt"
        )
    return Request(
        source=args.source,
        target=args.target,
        command=shlex.join(["plt-convert", *arguments]),
        revision=args.revision,
        num_loops=None if args.to_plt else args.loops,
        start=PLTStart(num_loops=args.loops, **values) if args.to_plt else None,
        text=args.text,
        expected=args.expected,
        ignored=frozenset(args.ignore),
        overwrite=args.overwrite,
        allow_pickle=args.allow_pickle,
        keep_nan=args.keep_nan,
    )
