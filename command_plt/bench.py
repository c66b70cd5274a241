# SPDX-License-Identifier: Apache-2.0
"""`plt bench`: what a PLT costs next to plain and looped models of its size."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from measuring_plt.product_names import NEED_NOTHING, PRODUCTS, ROW_COUNTS
from measuring_plt.rows import PACKED, ROWS
from measuring_plt.sizes import DENSE_SIZES, SIZES

from .options import ListsCommand, one_of, positive

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
DTYPES = ("float32", "bfloat16", "float16")

app = typer.Typer(
    help="Measure what a PLT costs on this machine.\n\nNext to plain and looped models; weights are random.",
    epilog="\b\nRows:\n" + "\n".join(f"  {row.name:9} {row.meaning}" for row in ROWS.values()),
)


def alone(text: str) -> tuple[int]:
    """One value where others take several."""
    return (positive(text),)


def option(name: str, metavar: str, help: str, parser: Callable[[str], Any] = positive) -> Any:
    return typer.Option(name, parser=parser, metavar=metavar, help=help)


Rows = Annotated[
    list[str] | None,
    option("--rows", "ROW...", "Rows next to plain [default: all; experts without llama].", one_of(ROWS)),
]
Batches = Annotated[list[int] | None, option("--batch-sizes", "N...", "Sequences that are decoded together.")]
Batch = Annotated[tuple | None, option("--batch-size", "N", "Sequences that are decoded together.", alone)]
Contexts = Annotated[list[int] | None, option("--contexts", "N...", "Tokens in the cache.")]
Context = Annotated[tuple | None, option("--context", "N", "Tokens in the cache.", alone)]
Prompts = Annotated[list[int] | None, option("--prompt-lengths", "N...", "Tokens of a prompt.")]
Prompt = Annotated[tuple | None, option("--prompt-length", "N", "Tokens of a prompt.", alone)]
Tokens = Annotated[int | None, option("--train-length", "N", "Tokens of a training step.")]
Lengths = Annotated[list[int] | None, option("--lengths", "N...", "Tokens of a sequence.")]
Rounds = Annotated[int | None, option("--rounds", "N", "Timed rounds, after the warm-up.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Decode with static caches and compiled steps.")]
Packed = Annotated[
    str | None,
    option("--pack", "|".join(PACKED), "Decode with packed weights, in all rows but llama.", one_of(PACKED)),
]
Output = Annotated[Path, typer.Option(file_okay=False, metavar="FOLDER", help="Output folder.")]
Size = Annotated[str, option("--size", "|".join(SIZES), "Size of the plain model.", one_of(SIZES))]
Threads = Annotated[int | None, option("--threads", "N", "CPU threads [default: PyTorch's].")]
SHARED = {
    "size": Size,
    "fields": Annotated[
        list[str] | None, option("--set", "FIELD=VALUE...", "Fields of PLTConfig, for all rows.", str)
    ],
    "dtype": Annotated[
        str | None,
        option(
            "--dtype",
            "|".join(DTYPES),
            "Type of weights and cache [default: bfloat16 on a GPU, float32 on a CPU].",
            one_of(DTYPES),
        ),
    ],
    "device": Annotated[
        str | None,
        option("--device", "NAME", "Where it runs: cpu, cuda or cuda:N [default: cuda if there is one].", str),
    ],
    "attn_implementation": Annotated[
        str, option("--attn-implementation", "NAME", f"Attention: {', '.join(ATTENTION)}.", one_of(ATTENTION))
    ],
    "threads": Threads,
    "output": Output,
}
DEFAULTS: dict[str, Any] = {
    "size": "0.5b",
    "attn_implementation": "sdpa",
    "output": Path("runs/bench"),
    "compiled": False,
}


@contextmanager
def in_a_checkout() -> Iterator[None]:
    """What measures is in no wheel, and needs an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error}: `plt bench` runs in a checkout of parallel-loop-transformer, "
            "after `pip install --editable '.[bench]'` there"
        ) from None


def add(name: str, sections: tuple[str, ...], help: str, **options: Any) -> None:
    """Add a subcommand that measures sections; it takes these options and the shared ones."""

    def command(ctx: typer.Context, **values: Any) -> None:
        with in_a_checkout():
            from laboratory.costs.measure import measure
        measure(ctx.obj, sections, name=name, **values)

    # typer reads options from a signature
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(key, keyword, annotation=kind, default=DEFAULTS.get(key))
        for key, kind in (options | SHARED).items()
    ]
    given = [inspect.signature(command).parameters["ctx"], *parameters]
    command.__signature__ = inspect.Signature(given)  # type: ignore[attr-defined]
    app.command(name, cls=ListsCommand, help=help)(command)


DECODE = {"rounds": Rounds, "compiled": Compiled, "packed": Packed}
add(
    "memory",
    ("memory", "cache"),
    "Measure the memory of each row by phase, beside formulas.\n\nEach row and phase in a process of its own; the KV "
    "cache by context, too.",
    rows=Rows,
    context=Contexts,
    prompt=Prompt,
    tokens=Tokens,
    packed=Packed,
)
add(
    "decode",
    ("decode",),
    "Milliseconds per token, by batch size and context.",
    rows=Rows,
    batch=Batches,
    context=Contexts,
    **DECODE,
)
add(
    "loops",
    ("loops",),
    "Milliseconds per token for 1 to 4 loops.\n\nOf PLT and of the vanilla loop, with the parallel efficiency: time "
    "of L loops in turn over L times that of L together.",
    batch=Batch,
    context=Context,
    **DECODE,
)
add("prefill", ("prefill",), "Time to first token, by prompt length.", rows=Rows, prompt=Prompts, rounds=Rounds)
add(
    "score",
    ("score",),
    "Time to all logits of a prompt, by its length.\n\nWithout a cache, as when texts are scored.",
    rows=Rows,
    prompt=Prompts,
    rounds=Rounds,
)
add(
    "train",
    ("train",),
    "Time of a training step.\n\nForward and backward, no optimizer.",
    rows=Rows,
    tokens=Tokens,
    rounds=Rounds,
)
add(
    "masks",
    ("masks",),
    "Masks of the window in blocks, and a dense one.\n\nTime and memory in a later loop of plt-2. Not part of `all`.",
    lengths=Lengths,
    rounds=Rounds,
)
add(
    "all",
    ("memory", "cache", "decode", "loops", "prefill", "score", "train"),
    "Measure all that depends on rows: memory, decode, loops, prefill, score and train.\n\n`loops` takes the first "
    "batch size and context, `memory` the longest prompt.",
    rows=Rows,
    batch=Batches,
    context=Contexts,
    prompt=Prompts,
    tokens=Tokens,
    **DECODE,
)


@app.command()
def fit(ctx: typer.Context, output: Output = DEFAULTS["output"]) -> None:
    """What greatest batch fits a card, by the formulas.

    Published models with one loop and with several, by card and context; nothing is measured. Not part of `all`.
    """
    with in_a_checkout():
        from laboratory.costs import fit as formulas
    formulas.fit(ctx.obj, output)


@app.command(
    cls=ListsCommand,
    epilog="\b\nProducts:\n" + "\n".join(f"  {name:12} {meaning}" for name, meaning in PRODUCTS.items()),
)
def products(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        option("--products", "NAME...", "Products; onnxruntime needs the extra `tools`.", one_of(PRODUCTS)),
    ] = NEED_NOTHING,  # type: ignore[assignment]  # a tuple, which typer makes a list of
    counts: Annotated[list[int], option("--row-counts", "N...", "Rows of a product: loops times batch.")] = ROW_COUNTS,  # type: ignore[assignment]
    rounds: Annotated[int, option("--rounds", "N", "Timed rounds, after the warm-up.")] = 9,
    size: Annotated[
        str, option("--size", "|".join(DENSE_SIZES), "Size of the plain model.", one_of(DENSE_SIZES))
    ] = DEFAULTS["size"],
    dtype: Annotated[
        str, option("--dtype", "|".join(DTYPES[:2]), "Type of weight and rows.", one_of(DTYPES[:2]))
    ] = "float32",
    threads: Threads = None,
    output: Output = DEFAULTS["output"],
) -> None:
    """Milliseconds of one product on a CPU, by every way there is.

    Of a few rows with the weight of an MLP, beside the time that reading the weight takes. Not part of `all`.
    """
    with in_a_checkout():
        from laboratory.costs import product_times
    product_times.measure(ctx.obj, names, size, dtype, counts, rounds, threads, output)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a complete `make demo`: runs/demo.")],
) -> None:
    """Quality and cost of the demo's models, in one table and one picture.

    Not part of `all`.
    """
    with in_a_checkout():
        from laboratory.costs import compare as demo
    demo.compare(folder)
