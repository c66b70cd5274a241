# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a row alone: each runs in a process of its own, which holds nothing else.

On a GPU, what PyTorch allocated on it at most. On a CPU, the largest resident set of the process, in which Python and
the libraries count in. The processes are forks of one that has imported what they need, and done nothing: a process
that this one started directly would count this one's peak as its own.
"""

import itertools
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import torch
from tqdm.auto import tqdm

from modeling_plt.cache_name_plt import THEIRS

from .device_bytes import peak_bytes
from .models import Setup, SharedWeights, random_ids
from .rows import Row
from .train import training_step

TOKENS = 4  # decoded after the prompt


@torch.inference_mode()
def generate(weights: SharedWeights, row: Row, num_tokens: int) -> None:
    model, token, cache = weights.build(row), random_ids(num_tokens, weights.setup), None
    for _ in range(1 + TOKENS):
        output = model(token, use_cache=True, logits_to_keep=1, **{THEIRS: cache})
        token, cache = output.logits[:, -1:].argmax(-1), output[THEIRS]


def train(weights: SharedWeights, row: Row, num_tokens: int) -> None:
    training_step(weights.build(row), random_ids(num_tokens, weights.setup))()


PHASES: dict[str, Callable[[SharedWeights, Row, int], None]] = {"prefill and decode": generate, "training": train}


def run_alone(setup: Setup, row: Row, phase: str, num_tokens: int, num_threads: int) -> tuple[int, int]:
    """Bytes of the weights, and at the peak, in a process that has done nothing before."""
    torch.set_num_threads(num_threads)
    weights = SharedWeights(setup)
    PHASES[phase](weights, row, num_tokens)
    held = sum(tensor.nbytes for tensor in weights.tensors.values())
    return held, peak_bytes(setup.device)


def measure_memory(setup: Setup, rows: list[Row], prompt_length: int, train_length: int) -> pd.DataFrame:
    """Batch 1; the first row is plain."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    lengths = dict(zip(PHASES, (prompt_length, train_length), strict=True))
    records = []
    for phase, row in tqdm(list(itertools.product(PHASES, rows)), desc="Peak memory", unit="process"):
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(run_alone, setup, row, phase, lengths[phase], torch.get_num_threads())
            held, peak = job.result()
        records.append((row.name, phase, lengths[phase], held / 1e6, peak / 1e6))
    table = pd.DataFrame(records, columns=["row", "phase", "tokens", "weights, MB", "peak, MB"])
    return table.assign(
        **{"ratio to plain": table["peak, MB"] / table.groupby("phase")["peak, MB"].transform("first")}
    )
