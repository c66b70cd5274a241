# SPDX-License-Identifier: Apache-2.0
"""`plt convert`: a published checkpoint becomes a folder that loads as a Parallel Loop Transformer."""

from pathlib import Path
from typing import Annotated, Any

import typer

from conversion_plt.plan.layer_numbers import read_layers

from .inspect import Revision, Source
from .options import ListsCommand, integer, number, one_of, reader


class ConvertCommand(ListsCommand):
    """Its help ends with the sources, which take seconds to import."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from conversion_plt.sources import all_sources

        with formatter.section("Sources, by the `model_type` of their config"):
            formatter.write_dl([(name, f"{item.title}: {item.becomes}") for name, item in all_sources().items()])


def convert(
    context: typer.Context,
    source: Source,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to write; it must not exist yet.")],
    revision: Revision = None,
    loops: Annotated[
        int | None,
        typer.Option(
            parser=integer,
            metavar="N",
            help="Number of loops over the whole stack of a plain source; with --to-plt, of the PLT.",
        ),
    ] = None,
    prelude: Annotated[
        int | None,
        typer.Option(parser=integer, metavar="N", help="Number of first layers of a plain source that run once."),
    ] = None,
    coda: Annotated[
        int | None,
        typer.Option(parser=integer, metavar="N", help="Number of last layers of a plain source that run once."),
    ] = None,
    layers: Annotated[
        tuple | None,
        typer.Option(
            parser=reader(read_layers, "ever higher numbers of layers such as 0-3,10-17,18-21"),
            metavar="LIST",
            help="Layers of a plain source to keep, such as 0-3,10-17,18-21 [default: all].",
        ),
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Safetensors with `input_ids` and the `logits` to reproduce."),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="FIELD...", help="Fields of the source's config to leave out.")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickle weights, through `weights_only` loading.")
    ] = False,
    keep_nan: Annotated[bool, typer.Option("--keep-nan", help="Accept weights that hold NaN or infinity.")] = False,
    to_plt: Annotated[
        bool,
        typer.Option("--to-plt", help="Switch shift, shared KV and gated window on; the options below need it."),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            parser=integer,
            metavar="N",
            help="Number of own keys that a later loop sees [default: the source's, or 64].",
        ),
    ] = None,
    loop_input: Annotated[
        str | None,
        typer.Option(
            parser=one_of(("sum", "adapter")),
            metavar="sum|adapter",
            help="What later loops of a plain source read: embedding and state scaled and added, or a matrix of both.",
        ),
    ] = None,
    embedding_scale: Annotated[
        float | None,
        typer.Option(parser=number, metavar="X", help="Weight of the embedding in a later loop's input."),
    ] = None,
    hidden_scale: Annotated[
        float | None,
        typer.Option(parser=number, metavar="X", help="Weight of the previous loop's state in a later loop's input."),
    ] = None,
    learned_scales: Annotated[bool | None, typer.Option(help="Make the two scales parameters, or numbers.")] = None,
    gate_start: Annotated[
        float | None,
        typer.Option(parser=number, metavar="X", help="Weight of the shared KV where a gate is new."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to measure the distance to the source on.")
    ] = None,
) -> None:
    """Turn a checkpoint into a folder that loads as a PLT.

    The folder loads anywhere with `trust_remote_code=True`, and its model card says what was checked.
    """
    from conversion_plt.convert import Request
    from conversion_plt.convert import convert as run
    from conversion_plt.plan.cut import Cut
    from conversion_plt.plan.to_plt import PLTStart

    start: dict[str, Any] = {
        "sliding_window": window,
        "loop_input": loop_input,
        "embedding_scale": embedding_scale,
        "hidden_scale": hidden_scale,
        "learned_scales": learned_scales,
        "gate": gate_start,
    }
    if not to_plt and any(value is not None for value in (text, *start.values())):
        context.fail(
            "--window, --loop-input, --embedding-scale, --hidden-scale, --learned-scales, --gate-start and --text "
            "need --to-plt"
        )
    if not to_plt and loops is None and (prelude is not None or coda is not None):
        context.fail("--prelude and --coda need --to-plt or --loops")
    request = Request(
        source=source,
        target=target,
        command=context.obj,
        revision=revision,
        num_loops=None if to_plt else loops,
        cut=Cut(layers, prelude, coda),
        start=PLTStart(num_loops=loops, **start) if to_plt else None,
        text=text,
        expected=expected,
        ignored=frozenset(ignore or ()),
        allow_pickle=allow_pickle,
        keep_nan=keep_nan,
    )
    for sentence in run(request):
        print(sentence)
    print(f"Wrote {target}")
