# SPDX-License-Identifier: Apache-2.0
"""Quality and cost of the demo's models, in one table and one picture.

    plt bench compare runs/demo

Quality is the loss of the trained models on held-out text. They are so small that Python takes most of their time;
cost is that of wide layers with random weights, with the loops and the attention of each model.
"""

import json
from pathlib import Path

import pandas as pd
import torch
from datasets import load_from_disk
from matplotlib.figure import Figure

from measuring_plt.models import Setup, SharedWeights
from measuring_plt.rows import LLAMA, ROWS
from measuring_plt.sizes import SIZES
from modeling_plt import PLTForCausalLM
from modeling_plt.packed import pack_weights

from ..report import markdown, write_whole
from .cache_bytes import measure_row
from .decode import measure_decoding

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


def losses(folder: Path, rows: torch.Tensor, packed: torch.dtype | None = None) -> tuple[float, float]:
    """Mean cross entropy per token of `[rows, length]`, in nats: of the model, and read off its first loop.

    With weights packed in another dtype, if one is given.
    """
    model = PLTForCausalLM.from_pretrained(folder).eval()
    if packed is not None:
        pack_weights(model, packed)
    whole = alone = 0.0
    with torch.inference_mode():
        for batch in rows.split(16):
            output = model(batch, labels=batch, output_loop_hidden_states=True)
            logits = model.lm_head(output.loop_hidden_states[0])
            whole += output.loss.item() * len(batch) / len(rows)
            alone += model.loss_function(logits, batch, model.vocab_size).item() * len(batch) / len(rows)
    return whole, alone


def measure_costs(setup: Setup) -> dict[str, dict]:
    """By row: milliseconds per token, their ratio to plain, and the megabytes of the KV cache."""
    rows = [*dict.fromkeys(MODELS.values()), LLAMA]
    timed = measure_decoding(SharedWeights(setup), rows, [1], [CONTEXT], ROUNDS).set_index("row")
    return {
        row.name: {
            "ms per token": round(timed["ms per token"][row.name], 1),
            "time ratio": round(timed["ratio to plain"][row.name], 2),
            "KV cache, MB": round(measure_row(setup, row, CONTEXT) / 1e6, 1),
        }
        for row in rows
    }


def caption(setup: Setup, unpacked: float, rounded: list[float]) -> str:
    """The models and settings that the numbers are of.

    Args:
        unpacked: milliseconds per token of plain without packed weights.
        rounded: losses of `plt` with weights packed in float16 and int8.
    """
    layers = f"{setup.fields['num_hidden_layers']} layers of width {setup.fields['hidden_size']}"
    return (
        "Loss: small models, trained on the same text, one seed; `loop 0 alone` is read off the first loop's state. "
        "`converted` is\n`loop` as a PLT, before any further training, `healed` is that after a tenth of the steps. "
        "After so short a training,\nother held-out texts can change the order. With weights packed in float16 and in "
        f"int8, the loss of `plt` is {rounded[0]:.3f}\nand {rounded[1]:.3f}.\n"
        f"Time and KV cache: {layers}, random weights, packed float32, eager, batch 1, after {CONTEXT} tokens.\n"
        f"Llama in transformers, whose weights are not packed: {unpacked} ms. CPU of capability "
        f"{torch.backends.cpu.get_cpu_capability()}, threads: {torch.get_num_threads()}."
    )


def promise(table: list[dict]) -> str:
    """Three bars for each of plain, loop and PLT: quality, cost, cache."""
    first = {line["model"]: line for line in table[:3]}
    lines = ["held-out loss, nats (less is better)"]
    lines += [f"  {name:6}{line['held-out loss']:.3f}" for name, line in first.items()]
    for title, column in (("time per token, of plain", "ms per token"), ("KV cache, of plain", "KV cache, MB")):
        lines.append(title)
        for name, line in first.items():
            ratio = line["time ratio"] if column == "ms per token" else line[column] / first["plain"][column]
            lines.append(f"  {name:6}{'#' * round(20 * ratio)} {ratio:.2f}")
    return "\n".join(lines)


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
    setup = Setup(FIELDS, torch.device("cpu"), torch.float32, "sdpa", packed="same")
    rows = torch.tensor(load_from_disk(folder / "data/rows")["test"]["input_ids"])
    costs = measure_costs(setup)
    table = []
    for name, row in MODELS.items():
        whole, alone = losses(folder / name, rows)
        quality = {"held-out loss": round(whole, 3), "loop 0 alone": round(alone, 3)}
        table.append({"model": name, "loops": row.num_loops} | quality | costs[row.name])
    rounded = [losses(folder / "plt", rows, dtype)[0] for dtype in (torch.float16, torch.int8)]
    note = caption(setup, costs["llama"]["ms per token"], rounded)
    text = markdown(pd.DataFrame(table))
    write_whole(folder / "comparison.md", f"{text}\n\n{note}\n")
    write_whole(folder / "comparison.json", json.dumps({"rows": table, "setting": note}, indent=2) + "\n")
    plot(table, note).savefig(folder / "comparison.png", dpi=150)
    print(f"\n{text}\n\n{note}\n\nPicture: {folder / 'comparison.png'}\n\n{promise(table)}")
