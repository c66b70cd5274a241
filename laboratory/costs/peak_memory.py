# SPDX-License-Identifier: Apache-2.0
"""Memory of each row by phase, in a process of its own, beside a formula."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from measuring_plt.models import Setup, SharedWeights, plain_bytes, random_ids, row_config
from measuring_plt.rows import Row
from modeling_plt.names_plt import THEIRS
from modeling_plt.packed import Memory, pack_weights

from . import memory_formulas as formulas
from .alone import can_measure, measure_bytes, run_alone
from .cache_bytes import theory
from .many_tokens import training_step

TOKENS = 4  # decoded after the prompt
SUM, BOUND = "sum", "bound"  # a formula of everything, and of what is there at least


class Case(NamedTuple):
    """One process: a row, and how many tokens it takes."""

    setup: Setup
    row: Row
    num_tokens: int

    def build(self) -> PreTrainedModel:
        """The model alone, with plain weights."""
        return SharedWeights(self.setup).build(self.row)

    def build_for_decoding(self) -> PreTrainedModel:
        """The same with packed weights, where the setup has them."""
        return SharedWeights(self.setup).build_for_decoding(self.row)

    def weights(self) -> int:
        """Bytes of the plain weights."""
        return plain_bytes(self.setup, self.row)

    def by(self, formula: Callable[..., int], *numbers: int) -> int:
        """A formula of bytes that takes a config, numbers, and the bytes of an entry."""
        return formula(row_config(self.setup.fields, self.row), *numbers, self.setup.dtype.itemsize)


class Phase(NamedTuple):
    """A phase to measure.

    Attributes:
        length: the tokens that it takes, "prompt" or "train".
        prepare: does the work before it, and returns the work to measure, which may be called twice.
        attribute: the attribute of `Bytes` that is shown.
        formula: takes the case, and the result of the measured work.
        kind: `SUM` or `BOUND`.
    """

    length: str
    prepare: Callable[[Case], Callable[[], Any]]
    attribute: str
    formula: Callable[[Case, Any], int]
    kind: str


def build_plain(case: Case) -> Callable[[], PreTrainedModel]:
    return case.build


def build_packed(case: Case) -> Callable[[], tuple[PreTrainedModel, Memory]]:
    def pack() -> tuple[PreTrainedModel, Memory]:
        model = case.build()
        return model, pack_weights(model, case.setup.packed_dtype)

    return pack


def prefill(case: Case) -> Callable[[], Cache]:
    model, input_ids = case.build_for_decoding(), random_ids(case.num_tokens, case.setup)
    return lambda: feed(model, input_ids, None)[1]


def decode(case: Case) -> Callable[[], None]:
    model, token = case.build_for_decoding(), random_ids(1, case.setup)
    _, cache = feed(model, random_ids(case.num_tokens, case.setup), None)

    def steps() -> None:
        following = token
        for _ in range(TOKENS):
            following, _ = feed(model, following, cache)

    return steps


@torch.inference_mode()
def feed(model: PreTrainedModel, input_ids: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
    """The token `[1, 1]` after `[1, T]`, and the cache with them."""
    output = model(input_ids, use_cache=True, logits_to_keep=1, **{THEIRS: cache})
    return output.logits[:, -1:].argmax(-1), output[THEIRS]


def forward(case: Case) -> Callable[[], Tensor]:
    model, input_ids = case.build().train(), random_ids(case.num_tokens, case.setup)
    return lambda: model(input_ids, labels=input_ids, use_cache=False).loss


def step(case: Case) -> Callable[[], None]:
    return training_step(case.build(), random_ids(case.num_tokens, case.setup))


def packed_bytes(case: Case, built: tuple[PreTrainedModel, Memory]) -> int:
    """Bytes of packed weights, of plain ones that stay beside them, and of all that is not packed."""
    memory = built[1]
    return case.weights() - memory.before + memory.after + memory.kept


PHASES = {
    "weights": Phase("prompt", build_plain, "held", lambda case, _: case.weights(), SUM),
    "packed weights": Phase("prompt", build_packed, "held", packed_bytes, SUM),
    "prefill, peak": Phase(
        "prompt", prefill, "peak", lambda case, _: case.by(formulas.prefill, case.num_tokens), BOUND
    ),
    "cache": Phase("prompt", prefill, "held", lambda case, _: case.by(theory, case.num_tokens), SUM),
    "decode, peak": Phase(
        "prompt",
        decode,
        "peak",
        lambda case, _: case.by(formulas.decode, case.num_tokens + TOKENS, TOKENS),  # it was done once before
        BOUND,
    ),
    "training activations": Phase(
        "train", forward, "held", lambda case, _: case.by(formulas.activations, case.num_tokens), BOUND
    ),
    "training step, peak": Phase(
        "train", step, "peak", lambda case, _: case.by(formulas.training_step, case.num_tokens, case.weights()), BOUND
    ),
}


NOTES = [
    "Weights, packed weights, cache and training activations are what stays when the phase is done; prefill, decode "
    "and training step are peaks. A phase begins with what it needs: prefill with the weights, decode with the cache "
    f"too, of which it takes {TOKENS} tokens; training with plain weights. A training step is forward and backward.",
    "A sum counts everything; a bound counts the largest tensors, which are there at least. Weights: parameters times "
    "bytes. Packed weights: weights - `before` + `after` + `kept` of `pack_weights`. Cache: as in the table of KV "
    "caches. Prefill, in the greatest layer of all loops, which T positions enter and Q leave: embeddings T D, the "
    "state of the loop before T D, the cache so far, the layer's input and its norm 2 T D, attention, sum and norm "
    "3 Q D, and the MLP's 3 Q F (Llama: T D and 2 Q D), or of each expert of a position D and the greater of 4 F and "
    "3 D. Decode: the cache of the new tokens, the keys of a layer once more, logits V. Training activations: what "
    "the layers of all loops keep, as `training_plt.memory` counts it in "
    "float32, and the log-softmax T V. Training step, the greatest of three moments: activations and 2 T V; "
    "activations of all loops but the last, and gradients of all but the embeddings; all gradients.",
]


def measure_phase(name: str, case: Case) -> tuple[int, int]:
    """Bytes by the formula of a phase, and as measured."""
    phase = PHASES[name]
    work = phase.prepare(case)
    work()  # what libraries keep of a first time is no part of it
    measured, result = measure_bytes(work, case.setup.device)
    return phase.formula(case, result), getattr(measured, phase.attribute)


def phases_of(setup: Setup, row: Row) -> list[str]:
    has_packed = setup.packed is not None and not row.is_llama and can_measure(setup.device)
    return [name for name in PHASES if has_packed or name != "packed weights"]


def measure_memory(setup: Setup, rows: list[Row], prompt_length: int, train_length: int) -> pd.DataFrame:
    """A line for each phase and row, batch 1; the first row of a phase is plain."""
    lengths = {"prompt": prompt_length, "train": train_length}
    asked = [(name, row) for name in PHASES for row in rows if name in phases_of(setup, row)]
    records = []
    for name, row in tqdm(asked, desc="Memory", unit="process"):
        case = Case(setup, row, lengths[PHASES[name].length])
        if can_measure(setup.device):
            formula, measured = run_alone(measure_phase, name, case)
        else:
            formula, measured = PHASES[name].formula(case, None), math.nan
        records.append((name, row.name, case.num_tokens, measured / 1e6, formula / 1e6, PHASES[name].kind))
    table = pd.DataFrame(records, columns=["phase", "row", "tokens", "measured, MB", "formula, MB", "which is a"])
    plain = table.groupby("phase")["measured, MB"].transform("first")
    # too little for pages to tell has no ratio
    return table.assign(**{"ratio to plain": table["measured, MB"] / plain.where(plain > 0)})
