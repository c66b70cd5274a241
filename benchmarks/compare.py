# SPDX-License-Identifier: Apache-2.0
"""Quality and cost of the demo's models, in one table and one picture.

    plt bench compare runs/demo

Quality is the loss of the trained models on held-out text. They are so small that Python takes most of their time;
cost is that of wide layers with random weights, with the loops and the attention of each model.
"""

import json
import math
from pathlib import Path

import torch
from datasets import load_from_disk
from matplotlib.figure import Figure
from tabulate import tabulate

from modeling_plt import PLTForCausalLM

from .cache_bytes import measure_row
from .decode import measure_decoding
from .models import Setup, SharedWeights
from .rows import ROWS
from .sizes import SIZES

# a model's folder, and the row of the benchmarks that costs what it does
MODELS = {
    "plain": ROWS["plain"],
    "loop": ROWS["loop-2"],
    "plt": ROWS["plt-2"],
    "converted": ROWS["plt-2"],
    "healed": ROWS["plt-2"],
}
# a few layers, so that it takes seconds; with a small vocabulary, as the head runs once whatever the loops
FIELDS = SIZES["0.5b"] | {"num_hidden_layers": 4, "vocab_size": 1024}
CONTEXT = 1024  # tokens in the cache when decoding starts
ROUNDS = 8


def loss(folder: Path, rows: torch.Tensor) -> float:
    """Mean cross entropy per token of `[rows, length]`, in nats."""
    model = PLTForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        losses = [model(batch, labels=batch).loss.item() * len(batch) for batch in rows.split(16)]
    return sum(losses) / len(rows)


def measure_cost(setup: Setup) -> dict[str, dict]:
    """By row: milliseconds per token, their ratio to plain, and the megabytes of the KV cache."""
    rows = list(dict.fromkeys(MODELS.values()))
    timed = measure_decoding(SharedWeights(setup), rows, [1], [CONTEXT], ROUNDS).set_index("row")
    return {
        row.name: {
            "ms per token": round(timed["ms per token"][row.name], 1),
            "time ratio": round(timed["ratio to plain"][row.name], 2),
            "KV cache, MB": round(measure_row(setup, row, CONTEXT) / 1e6, 1),
        }
        for row in rows
    }


def caption(setup: Setup) -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    products = "products swapped by `speed_up_few_rows`" if setup.few_rows else "PyTorch's own products"
    layers = f"{setup.fields['num_hidden_layers']} layers of width {setup.fields['hidden_size']}"
    return (
        "Loss: small models, trained on the same text; `converted` is `loop` as a PLT, before any further training,\n"
        "`healed` is that after a tenth of the steps.\n"
        "After so short a training, other held-out texts can change the order.\n"
        f"Time and KV cache: {layers}, random weights, eager float32, batch 1, after {CONTEXT} tokens;\n"
        f"CPU of capability {capability}, {products}, threads: {torch.get_num_threads()}."
    )


def plot(table: list[dict], note: str) -> Figure:
    """A panel for each column, a line for each model."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    names = [line["model"] for line in table]
    for axes, column in zip(panels, ("held-out loss", "ms per token", "KV cache, MB"), strict=True):
        values = [line[column] for line in table]
        if column == "held-out loss":
            axes.plot(values, names, "o", color="tab:blue")  # from zero, bars of losses would all look alike
            axes.margins(0.2)
        else:
            axes.barh(names, values, color="tab:gray", height=0.5)
        axes.set_title(f"{column} (less is better)", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].invert_yaxis()
    figure.supxlabel(note, fontsize=7)
    return figure


def compare(folder: Path) -> None:
    """Print the table of a folder with `data` and the `MODELS`, and write it there with its picture.

    Raises:
        ValueError: one of them is missing.
    """
    missing = [name for name in ("data", *MODELS) if not (folder / name).is_dir()]
    if missing:
        raise ValueError(
            f"{folder} must be the folder of a complete `make demo`, got one without {', '.join(missing)}."
        )
    few_rows = torch.backends.cpu.get_cpu_capability() == "AVX2"  # where the libraries are slow with two rows
    setup = Setup(FIELDS, torch.device("cpu"), torch.float32, "sdpa", few_rows=few_rows)
    rows = torch.tensor(load_from_disk(folder / "data/rows")["test"]["input_ids"])
    costs = measure_cost(setup)
    table = []
    for name, row in MODELS.items():
        nats = loss(folder / name, rows)
        quality = {"held-out loss": round(nats, 3), "perplexity": round(math.exp(nats), 2)}
        table.append({"model": name, "loops": row.num_loops} | quality | costs[row.name])
    text, note = tabulate(table, headers="keys", tablefmt="github"), caption(setup)
    (folder / "comparison.md").write_text(f"{text}\n\n{note}\n")
    (folder / "comparison.json").write_text(json.dumps({"rows": table, "setting": note}, indent=2) + "\n")
    plot(table, note).savefig(folder / "comparison.png", dpi=150)
    print(f"\n{text}\n\n{note}\n\nPicture: {folder / 'comparison.png'}")
