# SPDX-License-Identifier: Apache-2.0
"""Milliseconds of a product of a few rows with the weight of an MLP, by every way there is on a CPU.

A decode step of L loops multiplies L rows, times the batch, by each weight.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from measuring_plt.product_names import PRODUCTS
from measuring_plt.sizes import SIZES
from measuring_plt.turns import WARMUP_ROUNDS, take_turns

from ..report import Section, publish
from ..setting import machine
from .bandwidth import READ, reader
from .products import BYTES, MAKERS

TOGETHER = 2**27  # bytes of the weights that take turns: caches hold only a part of them
TITLE = "Products of a few rows with a weight, on a CPU"
READING = "reading"  # the sample that tells how fast memory is
SWITCHES = (  # by which libraries leave instructions out, to see what a CPU without them does
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "FBGEMM_ENABLE_INSTRUCTIONS",
    "MKL_ENABLE_INSTRUCTIONS",
)


def measure_products(names: list[str], weight: Tensor, counts: list[int], rounds: int) -> pd.DataFrame:
    """A line per product: milliseconds of one, by number of rows, beside the time that reading its weight takes.

    Args:
        weight: `[out, in]`, float32 or bfloat16. The products take turns with others of its kind.
        counts: of rows.
    """
    sizes = {name: weight.numel() * BYTES.get(name, weight.itemsize) for name in names}
    columns: dict[str, pd.Series] = {}
    readings = []
    for count in counts:
        times = measure_count(sizes, weight, count, rounds)
        readings += times.pop(READING).tolist()
        label = f"ms, {count} row{'s' * (count > 1)}"
        columns |= {label: times.median(), f"{label}, by round": times.T.apply(list, axis=1)}
    read = pd.Series(readings).median() / READ
    head = {"product": names, "what": [PRODUCTS[name] for name in names]}
    megabytes = pd.Series(sizes) / 1e6
    bound = pd.Series({name: size * read for name, size in sizes.items()})
    return pd.DataFrame(head | {"weight, MB": megabytes, "bound, ms": bound} | columns, index=names)


@torch.no_grad()
def measure_count(sizes: dict[str, int], weight: Tensor, count: int, rounds: int) -> pd.DataFrame:
    """Milliseconds of one product, and of reading, for each round. Samples are in memory together, for one count."""
    rows = torch.randn(count, weight.shape[1], dtype=weight.dtype)
    samples: dict[str, Callable] = {READING: reader(torch.device("cpu"))}
    number = {READING: 1}
    for name, size in sizes.items():
        number[name] = math.ceil(TOGETHER / size)
        samples[name] = MAKERS[name](others(weight, number[name]), rows)
    times = pd.DataFrame(take_turns(samples, rounds, f"Products of {count} rows"))
    return times / pd.Series(number)


def others(weight: Tensor, number: int) -> list[Tensor]:
    """That many different weights of this shape and dtype."""
    return [torch.empty_like(weight).uniform_(-0.035, 0.035) for _ in range(number)]


def measure(
    command: str,
    names: list[str],
    size: str,
    dtype: str,
    counts: list[int],
    rounds: int,
    threads: int | None,
    output: Path,
) -> None:
    """Measure, print and write the table of a size: `products.md` and `products.json`.

    Raises:
        ValueError: a product does not do that dtype.
        NotImplementedError: this CPU lacks one.
        ImportError: a product's packages are not installed.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    fields = SIZES[size]
    weight = torch.empty(fields["intermediate_size"], fields["hidden_size"], dtype=getattr(torch, dtype))
    ordered = [name for name in PRODUCTS if name in names]
    publish(output, "products", TITLE, describe(command, size, weight), sections(ordered, weight, counts, rounds))


def sections(names: list[str], weight: Tensor, counts: list[int], rounds: int) -> Iterator[Section]:
    """The only one, when it is asked for."""
    note = (
        f"{rounds} rounds. Bound: what reading as many bytes as the product has of the weight takes, "
        "measured in the same rounds."
    )
    yield Section("products", "Products", measure_products(names, weight, counts, rounds), [note])


def describe(command: str, size: str, weight: Tensor) -> dict:
    """A run, for the files."""
    return {
        "command": command,
        "size": size,
        "weight": list(weight.shape),
        "dtype": str(weight.dtype).removeprefix("torch."),
        **machine(weight.device),
        **{name: os.environ[name] for name in SWITCHES if name in os.environ},
        "method": f"random weights, different ones in turn, together {TOGETHER / 1e6:.0f} MB or more in each product; "
        f"{WARMUP_ROUNDS} warm-up round, then in each round every product once, and reading {READ / 1e6:.0f} MB; "
        "medians over rounds",
    }
