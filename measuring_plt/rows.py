# SPDX-License-Identifier: Apache-2.0
"""The rows of every table: the paper's ablation, and what it is measured against."""

from dataclasses import dataclass, field
from typing import Any

LOOP = {"loop_shift": False, "loop_attention": "own"}
SHIFT = {"loop_shift": True, "loop_attention": "own"}
SHARED = {"loop_shift": True, "loop_attention": "shared"}
PLT = {"loop_shift": True, "loop_attention": "gated_window"}
PACKED = ("same", "float16", "int8")  # what `pack_weights` packs weights in: their own dtype, or another
FIELDS_OF_ROWS = ("num_loops", *PLT)  # of PLTConfig; `--set` leaves them alone


@dataclass(frozen=True)
class Row:
    """A kind of model.

    Attributes:
        mechanisms: fields of PLTConfig that switch PLT's mechanisms; of no effect with one loop.
        depth: how many times the layers of the plain row it has, with weights of their own.
        is_llama: whether it is transformers' `LlamaForCausalLM`.
    """

    name: str
    meaning: str
    num_loops: int
    mechanisms: dict[str, Any] = field(hash=False)
    depth: int = 1
    is_llama: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of PLTConfig but the number of layers."""
        return {"num_loops": self.num_loops} | self.mechanisms

    @property
    def num_passes(self) -> int:
        """Passes of a plain model's layers that a token takes."""
        return self.num_loops * self.depth


IN_TURN = "plt-2, in turn"
PRUNED = "plt-2, pruned"
ALL_ROWS = {
    row.name: row
    for row in (
        Row("plain", "one loop", 1, PLT),
        Row("llama", "transformers' LlamaForCausalLM with the weights of plain", 1, PLT, is_llama=True),
        Row("loop-2", "vanilla loop: two loops, each with its full KV cache, one after another", 2, LOOP),
        Row("shift-2", "+ shift: both loops of a token in one pass", 2, SHIFT),
        Row("shared-2", "+ shared KV: later loops attend to the first one's KV cache", 2, SHARED),
        Row("plt-2", "+ gated window: PLT with two loops", 2, PLT),
        Row("plt-3", "PLT with three loops", 3, PLT),
        Row("deep-2", "plain, with twice the layers", 1, PLT, depth=2),
        Row(IN_TURN, "PLT with two loops, one after another", 2, PLT | {"one_pass": False}),
        Row(PRUNED, "PLT with two loops, whose server prunes prompts", 2, PLT),
        Row("plt-4", "PLT with four loops", 4, PLT),
        Row("loop-3", "vanilla loop with three loops", 3, LOOP),
        Row("loop-4", "vanilla loop with four loops", 4, LOOP),
        Row("deep-3", "plain, with three times the layers", 1, PLT, depth=3),
    )
}
PLAIN, LLAMA = ALL_ROWS["plain"], ALL_ROWS["llama"]
ABLATION = ("plain", "loop-2", "shift-2", "shared-2", "plt-2", "plt-3", "deep-2")
ROWS = {name: row for name, row in ALL_ROWS.items() if name in (*ABLATION, "llama")}  # of `plt bench`
# by the number of loops, from one on
LOOPED_ROWS = {
    "PLT": [PLAIN, *(ALL_ROWS[f"plt-{loops}"] for loops in (2, 3, 4))],
    "vanilla loop": [PLAIN, *(ALL_ROWS[f"loop-{loops}"] for loops in (2, 3, 4))],
}

PUBLISHED = (
    'arXiv 2510.24824, Seed-MoE 680M/13B, batch 4, as a ratio to its plain row; for three loops it says "small rise"'
)
PUBLISHED_MS = {"plain": 4.8, "loop-2": 9.4, "shift-2": 5.9, "shared-2": 4.8, "plt-2": 4.9}  # per token
PUBLISHED_CACHE = {"plain": 280, "loop-2": 560, "shift-2": 560, "shared-2": 280, "plt-2": 284}  # millions
