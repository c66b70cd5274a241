# SPDX-License-Identifier: Apache-2.0
"""The tables of each command."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks_plt import decode, peak_memory
from benchmarks_plt.cache_bytes import measure_cache
from benchmarks_plt.loops import measure_loops
from benchmarks_plt.models import Setup, SharedWeights
from benchmarks_plt.plots import plot_cache, plot_loops, plot_prefill
from benchmarks_plt.prefill import measure_prefill
from benchmarks_plt.report import Section
from benchmarks_plt.rows import PUBLISHED, Row
from benchmarks_plt.sizes import Sweep
from benchmarks_plt.train import measure_training


@dataclass(frozen=True)
class Run:
    """What the command line asks for; `headline` names it in plots."""

    setup: Setup
    weights: SharedWeights
    sweep: Sweep
    rows: list[Row]
    headline: str


def rounds_note(rounds: int, what: str) -> str:
    return f"{rounds} rounds. {what} Passes: of the plain row's layers, per token."


def decode_section(run: Run) -> Section:
    sweep = run.sweep
    timed = decode.measure_decoding(run.weights, run.rows, sweep.batch_sizes, sweep.contexts, sweep.decode_rounds)
    records = [item.record("ms per token") | {"published ratio": item.row.published_ms_ratio} for item in timed]
    what = (
        f"In each, a row decodes {decode.TOKENS} tokens greedily behind a cache that was filled with random keys and "
        "values. All sequences of the batch get a token in that time."
    )
    notes = [rounds_note(sweep.decode_rounds, what), f"Published: {PUBLISHED}."]
    return Section("decode", "Decoding", records, notes)


def loops_section(run: Run) -> Section:
    sweep = run.sweep
    results = measure_loops(run.weights, sweep.batch_sizes[0], sweep.contexts[0], sweep.decode_rounds)
    notes = [
        f"{sweep.decode_rounds} rounds of {decode.TOKENS} tokens.",
        "Parallel efficiency: time of one loop over the time of L, 1 if further loops are free, 1 / L if each costs "
        "as much as the first.",
    ]
    figures = {"latency_by_loops": plot_loops(results, run.headline)}
    return Section("loops", "Decoding by loops", [item.record() for item in results], notes, figures)


def prefill_section(run: Run) -> Section:
    timed = measure_prefill(run.weights, run.rows, run.sweep.prompt_lengths, run.sweep.prefill_rounds)
    records = [item.record("ms to first token") for item in timed]
    what = "In each, a row fills a new cache with the prompt, batch 1, and picks the next token."
    figures = {"first_token_by_prompt": plot_prefill(timed, run.headline)}
    return Section("prefill", "Prefill", records, [rounds_note(run.sweep.prefill_rounds, what)], figures)


def train_section(run: Run) -> Section:
    timed = measure_training(run.weights, run.rows, run.sweep.train_length, run.sweep.train_rounds)
    records = [
        item.record("ms per step") | {"ratio to passes x plain": item.timing.ratio / item.row.num_passes}
        for item in timed
    ]
    what = (
        "A step is forward with loss and backward of one row of tokens, and freeing the gradients; no optimizer, no "
        "checkpointing. Its memory is in the table of peak memory."
    )
    return Section("train", "Training step", records, [rounds_note(run.sweep.train_rounds, what)])


def cache_section(run: Run) -> Section:
    results = measure_cache(run.setup, run.rows, run.sweep.contexts)
    notes = [
        "One sequence. Theory: 2 N Hkv Dh (S + (L - 1) (window - 1)) + (L - 1) D elements and a position id for PLT, "
        "L S columns for loops with KV of their own. Measured: the tensors of a cache that was filled.",
        f"Published: {PUBLISHED}.",
    ]
    figures = {"cache_by_context": plot_cache(results, run.headline)}
    return Section("cache", "KV cache", [item.record() for item in results], notes, figures)


def memory_section(run: Run) -> Section:
    results = peak_memory.measure_memory(run.setup, run.rows, max(run.sweep.prompt_lengths), run.sweep.train_length)
    measured = (
        "what PyTorch allocated on the GPU"
        if run.setup.device.type == "cuda"
        else "the resident set, in which Python and the libraries count in"
    )
    notes = [
        f"Each row and phase in a process of its own, batch 1; the peak is {measured}. Prefill and decode: the prompt "
        f"and {peak_memory.TOKENS} more tokens. Training: one step, as timed in `plt-bench train`."
    ]
    return Section("memory", "Peak memory", [item.record() for item in results], notes)


COMMANDS: dict[str, tuple[Callable[[Run], Section], ...]] = {
    "memory": (memory_section, cache_section),
    "decode": (decode_section,),
    "loops": (loops_section,),
    "prefill": (prefill_section,),
    "train": (train_section,),
}
COMMANDS["all"] = tuple(section for sections in COMMANDS.values() for section in sections)
