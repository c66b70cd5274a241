# SPDX-License-Identifier: Apache-2.0
"""The rows of every table: the paper's ablation, and what it is measured against."""

from dataclasses import dataclass, field

LOOP = {"loop_shift": False, "loop_attention": "own"}
SHIFT = {"loop_shift": True, "loop_attention": "own"}
SHARED = {"loop_shift": True, "loop_attention": "shared"}
PLT = {"loop_shift": True, "loop_attention": "gated_window"}
FIELDS_OF_ROWS = ("num_loops", *PLT)  # of PLTConfig; `--set` leaves them alone

PUBLISHED = (
    'arXiv 2510.24824, Seed-MoE 680M/13B, batch 4, as a ratio to its plain row; for three loops it says "small rise"'
)
PUBLISHED_PLAIN_MS, PUBLISHED_PLAIN_CACHE = 4.8, 280


@dataclass(frozen=True)
class Row:
    """A kind of model.

    Attributes:
        num_loops: passes over the layers.
        mechanisms: fields of PLTConfig that switch PLT's mechanisms; of no effect with one loop.
        depth: how many times the layers of the plain row it has, with weights of their own.
        is_llama: whether it is transformers' `LlamaForCausalLM`.
        published_ms: the paper's ms per token.
        published_cache: the paper's KV cache, in units of a million.
    """

    name: str
    num_loops: int
    mechanisms: dict[str, bool | str] = field(hash=False)
    depth: int = 1
    is_llama: bool = False
    published_ms: float | None = None
    published_cache: int | None = None

    @property
    def num_passes(self) -> int:
        """Passes of a plain model's layers that a token takes."""
        return self.num_loops * self.depth

    @property
    def published_ms_ratio(self) -> float | None:
        return None if self.published_ms is None else self.published_ms / PUBLISHED_PLAIN_MS

    @property
    def published_cache_ratio(self) -> float | None:
        return None if self.published_cache is None else self.published_cache / PUBLISHED_PLAIN_CACHE


PLAIN = Row("plain", 1, PLT, published_ms=4.8, published_cache=280)
LLAMA = Row("llama", 1, PLT, is_llama=True)

ROWS = {
    row.name: row
    for row in (
        PLAIN,
        LLAMA,
        Row("loop-2", 2, LOOP, published_ms=9.4, published_cache=560),
        Row("shift-2", 2, SHIFT, published_ms=5.9, published_cache=560),
        Row("shared-2", 2, SHARED, published_ms=4.8, published_cache=280),
        Row("plt-2", 2, PLT, published_ms=4.9, published_cache=284),
        Row("plt-3", 3, PLT),
        Row("deep-2", 1, PLT, depth=2),
    )
}
ROW_MEANINGS = """\
  plain     one loop
  llama     transformers' LlamaForCausalLM with the weights of plain
  loop-2    vanilla loop: two loops, each with its full KV cache, one after another
  shift-2   + shift: both loops of a token in one pass
  shared-2  + shared KV: later loops attend to the first one's KV cache
  plt-2     + gated window: PLT with two loops
  plt-3     PLT with three loops
  deep-2    plain, with twice the layers"""

MAX_LOOPS = 4
LOOPED_ROWS = {
    "PLT": [PLAIN, *(Row(f"plt-{loops}", loops, PLT) for loops in range(2, MAX_LOOPS + 1))],
    "vanilla loop": [PLAIN, *(Row(f"loop-{loops}", loops, LOOP) for loops in range(2, MAX_LOOPS + 1))],
}
