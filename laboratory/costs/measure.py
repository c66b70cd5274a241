# SPDX-License-Identifier: Apache-2.0
"""One run: what the options ask for is checked, then measured section by section."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from configuration_plt.assignments import parse_assignments
from measuring_plt.models import Setup, SharedWeights, row_config
from measuring_plt.rows import FIELDS_OF_ROWS, LLAMA, PLAIN, ROWS, Row
from measuring_plt.sizes import SIZES, suggested_sweep

from ..report import publish
from ..setting import describe, headline
from .sections import SECTIONS, Run


def measure(
    command: str,
    sections: tuple[str, ...],
    *,
    name: str,
    size: str,
    fields: list[str] | None,
    dtype: str | None,
    device: str | None,
    attn_implementation: str,
    threads: int | None,
    output: Path,
    rows: list[str] | None = None,
    compiled: bool = False,
    packed: str | None = None,
    **sweep: Any,
) -> None:
    """Measure, print and write sections; the files, called `name`, are written whenever a table is complete.

    Args:
        command: the command line, for the files.
        sweep: what is varied, see `sizes`; None for what the size and the device suggest.

    Raises:
        ValueError: an option cannot be followed.
    """
    place = read_device(device)
    number = getattr(torch, dtype or ("bfloat16" if place.type == "cuda" else "float32"))
    setup = Setup(read_fields(size, fields or []), place, number, attn_implementation, compiled, packed)
    chosen = read_rows(rows, setup.fields)
    if packed and place.type != "cpu":
        raise ValueError(f"`--pack` is for a CPU, got {place}.")
    if threads is not None:
        torch.set_num_threads(threads)
    setting = describe(command, size, setup)
    given = {key: value for key, value in sweep.items() if value}
    run = Run(SharedWeights(setup), chosen, headline(setting), **suggested_sweep(size, place.type) | given)
    publish(output, name, run.headline, setting, (SECTIONS[section](run) for section in sections))


def read_device(text: str | None) -> torch.device:
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"`--device` must be cpu, cuda or cuda:N, got {text!r}.")
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if (device.index or 0) >= found:
            raise ValueError(f"`--device` must be one of the {found} GPUs here, got {text!r}.")
        torch.cuda.set_device(device)  # the one that the clock waits for
    return device


def read_fields(size: str, assignments: list[str]) -> dict:
    """Fields of PLTConfig for all rows."""
    changes = parse_assignments(assignments)
    for name in FIELDS_OF_ROWS:
        if name in changes:
            raise ValueError(f"`--set` cannot change {name}: each row has its own.")
    fields = SIZES[size] | changes
    try:
        row_config(fields, PLAIN)
    except StrictDataclassError as error:
        raise ValueError(f"`--set`: {error.__cause__ or error}") from error
    return fields


def read_rows(names: list[str] | None, fields: dict) -> list[Row]:
    """Plain and the rows of these names, in the order of `ROWS`; all if there are none, but Llama has no experts."""
    config = row_config(fields, PLAIN)
    if names is None:
        names = [name for name, row in ROWS.items() if not (row.is_llama and config.num_experts)]
    rows = [row for row in ROWS.values() if row == PLAIN or row.name in names]
    own_bias = config.attention_output_bias != config.attention_bias
    beyond_llama = config.qk_norm != "none" or config.num_experts or config.norm_placement != "pre" or own_bias
    if LLAMA in rows and beyond_llama:
        raise ValueError(
            "`--size` or `--set` gives the model what Llama does not have: leave the row llama out with `--rows`."
        )
    return rows
