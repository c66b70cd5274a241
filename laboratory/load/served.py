# SPDX-License-Identifier: Apache-2.0
"""The servers of all rows, each with a model of random weights."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from measuring_plt.models import Setup, SharedWeights
from measuring_plt.rows import ALL_ROWS, IN_TURN
from measuring_plt.sizes import SIZES
from serving_plt.vllm.server import Server, serving

from .plan import MODELS, ROWS, Plan

KV_BYTES = 1 << 30  # of each server's cache
STEP = 2048  # tokens of a step at most
TOGETHER = 64  # requests at most


def save_models(folder: Path, plan: Plan) -> None:
    """A model of each row and its tokenizer, in folders of the rows' names; weights are the same where shapes are.

    They are no dummies of vLLM, whose numbers are so small that no token would tell a wrong state.
    """
    setup = setup_of(plan)
    weights = SharedWeights(setup)
    for row in {MODELS.get(row, row) for row in ROWS}:
        weights.build(ALL_ROWS[row]).save_pretrained(folder / row)
        word_tokenizer(setup.fields["vocab_size"]).save_pretrained(folder / row)


def setup_of(plan: Plan) -> Setup:
    """What the models of all rows share."""
    fields = SIZES[plan.size] | {"max_position_embeddings": plan.longest, "bos_token_id": None, "eos_token_id": None}
    return Setup(fields, torch.device("cpu"), getattr(torch, plan.dtype), "sdpa")


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A word for each token, so that random tokens are a text of as many."""
    tokenizer = Tokenizer(WordLevel({f"t{token}": token for token in range(size)}, unk_token="t0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def options(row: str, plan: Plan) -> tuple[str, ...]:
    """Of a row's server."""
    limits = ["--max-model-len", plan.longest, "--max-num-batched-tokens", STEP, "--max-num-seqs", TOGETHER]
    memory = ["--kv-cache-memory-bytes", KV_BYTES, "--gpu-memory-utilization", 0.1]
    ways = ["--hf-overrides", json.dumps({"one_pass": row != IN_TURN})]
    return tuple(map(str, ["--dtype", plan.dtype, "--enforce-eager", *limits, *memory, *ways]))


@dataclass(frozen=True)
class Served:
    """The server of a row, and the folder of its model."""

    server: Server
    model: Path


@contextlib.contextmanager
def servers(folder: Path, plan: Plan) -> Iterator[dict[str, Served]]:
    """By row; all of them run, and wait for their turns."""
    save_models(folder, plan)
    models = {row: folder / MODELS.get(row, row) for row in ROWS}
    with contextlib.ExitStack() as stack:
        yield {
            row: Served(stack.enter_context(serving(model, folder / f"{row}.log", *options(row, plan))), model)
            for row, model in models.items()
        }
