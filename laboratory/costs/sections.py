# SPDX-License-Identifier: Apache-2.0
"""The tables that can be measured, with what must be known to read them."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from measuring_plt.greedy import all_logits, first_token
from measuring_plt.models import SharedWeights
from measuring_plt.rows import PUBLISHED, PUBLISHED_CACHE, PUBLISHED_MS, Row

from ..plots import plot_cache, plot_loops_and_bound, plot_prefill
from ..report import Section
from . import decode, peak_memory
from .alone import how_measured
from .cache_bytes import measure_cache
from .many_tokens import measure_many_tokens, training_step
from .window_masks import measure_masks

PASSES = "Passes: of the plain row's layers, per token."
BOUND = (
    "Bound: of the ratio to plain, the products of weights with positions over plain's. The head runs once, and "
    "positions that no output needs are not computed; what attention computes of keys is on top."
)


@dataclass(frozen=True)
class Run:
    """A request of the command line; `headline` names it in plots."""

    weights: SharedWeights
    rows: list[Row]
    headline: str
    # what is varied, see `sizes`
    batch: list[int]
    context: list[int]
    prompt: list[int]
    tokens: int
    lengths: list[int]
    rounds: int


def with_published(table: pd.DataFrame, published: Mapping[str, float]) -> pd.DataFrame:
    """The table with the paper's ratios to its plain row, where it has that row."""
    return table.assign(**{"published ratio": table["row"].map(published) / published["plain"]})


def note_on_bound(table: pd.DataFrame) -> str:
    """The meaning of `measure_decoding`'s columns; megabytes in a millisecond are gigabytes in a second."""
    bandwidth = table["read, MB"][0] / table["bound, ms"][0]
    return (
        "Read: what a step must read, the weights of the layers in each pass, those of the head, and the KV cache. "
        f"Bound: the time in which memory gives that, at {bandwidth:.1f} GB/s, measured before and after the rounds "
        "with as many threads: the greatest entry of a large float32 tensor, which takes no longer than its sum."
    )


def note_on_experts(weights: SharedWeights) -> list[str]:
    """What is read of experts, if there are any."""
    if "num_experts" not in weights.setup.fields:
        return []
    return [
        "Of E experts, those are read to which n rows, the loops of a pass times the batch, are expected to be sent "
        "if each chooses k at random: E (1 - (1 - k / E)^n). Loops that choose alike read fewer."
    ]


def decode_section(run: Run) -> Section:
    table = decode.measure_decoding(run.weights, run.rows, run.batch, run.context, run.rounds)
    note = (
        f"{run.rounds} rounds. In each, a row decodes {decode.TOKENS} tokens greedily after a cache that was filled "
        f"with random keys and values. All sequences of the batch get a token in that time. {PASSES}"
    )
    notes = [note, note_on_bound(table), *note_on_experts(run.weights), f"Published: {PUBLISHED}."]
    return Section("decode", "Decoding", with_published(table, PUBLISHED_MS), notes)


def loops_section(run: Run) -> Section:
    table = decode.measure_loops(run.weights, run.batch[0], run.context[0], run.rounds)
    notes = [
        f"{run.rounds} rounds of {decode.TOKENS} tokens.",
        note_on_bound(table),
        *note_on_experts(run.weights),
        "Parallel efficiency: time of L loops in turn, as the vanilla loop runs them in the same round, over L times "
        "that of PLT's L loops together: about 1 if further loops are free, 1 / L if they take as long as in turn. "
        "The vanilla loop itself has 1 / L.",
    ]
    return Section(
        "loops", "Decoding by loops", table, notes, {"latency_by_loops": plot_loops_and_bound(table, run.headline)}
    )


def prefill_section(run: Run) -> Section:
    table = measure_many_tokens(
        run.weights, run.rows, "prompt", run.prompt, run.rounds, first_token, "ms to first token", 1
    )
    note = (
        f"{run.rounds} rounds. In each, a row fills a new cache with the prompt, batch 1, and picks the next token. "
        f"{PASSES}"
    )
    return Section(
        "prefill", "Prefill", table, [note, BOUND], {"first_token_by_prompt": plot_prefill(table, run.headline)}
    )


def score_section(run: Run) -> Section:
    table = measure_many_tokens(
        run.weights, run.rows, "prompt", run.prompt, run.rounds, all_logits, "ms to all logits", 0
    )
    note = (
        f"{run.rounds} rounds. In each, a row computes all logits of the prompt, batch 1, without a cache. Nothing is "
        f"pruned: every loop computes every position. {PASSES}"
    )
    return Section("score", "Scoring", table, [note, BOUND])


def train_section(run: Run) -> Section:
    table = measure_many_tokens(
        run.weights, run.rows, "tokens", [run.tokens], run.rounds, training_step, "ms per step", 0
    )
    note = (
        f"{run.rounds} rounds. A step is forward with loss and backward of one row of tokens, and freeing the "
        f"gradients; no optimizer, no checkpointing. Its memory is in the table of memory. {PASSES}"
    )
    return Section("train", "Training step", table, [note, BOUND])


def cache_section(run: Run) -> Section:
    table = with_published(measure_cache(run.weights.setup, run.rows, run.context), PUBLISHED_CACHE)
    notes = [
        "One sequence. Theory: 2 N Hkv Dh (S + (L - 1) (window - 1)) + L D elements and a position id for PLT, "
        "L S columns for loops with KV of their own. Measured: the tensors of a cache that was filled.",
        f"Published: {PUBLISHED}.",
    ]
    return Section("cache", "KV cache", table, notes, {"cache_by_context": plot_cache(table, run.headline)})


def memory_section(run: Run) -> Section:
    setup = run.weights.setup
    table = peak_memory.measure_memory(setup, run.rows, max(run.prompt), run.tokens)
    return Section("memory", "Memory by phase", table, [how_measured(setup.device), *peak_memory.NOTES])


def masks_section(run: Run) -> Section:
    setup = run.weights.setup
    table = measure_masks(setup, run.lengths, run.rounds)
    notes = [
        f"{run.rounds} rounds. One later loop's window in one layer of plt-2, batch 1: `PLTAttention.attend_window` "
        "with the mask in blocks that the model makes, and with the dense one of transformers. A mask "
        "is made once for all layers and later loops; forward and backward are of each layer and later loop.",
        f"MB: at most, beyond inputs and (but where it is made) the mask. {how_measured(setup.device)}",
    ]
    return Section("masks", "Masks of the window", table, notes)


SECTIONS = {
    "memory": memory_section,
    "cache": cache_section,
    "decode": decode_section,
    "loops": loops_section,
    "prefill": prefill_section,
    "score": score_section,
    "train": train_section,
    "masks": masks_section,
}
