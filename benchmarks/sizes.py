# SPDX-License-Identifier: Apache-2.0
"""Sizes of models, with what is measured for each unless the command line says otherwise."""

from dataclasses import dataclass

COMMON = {"vocab_size": 32000, "max_position_embeddings": 131072, "sliding_window": 64}

# fields of PLTConfig
SIZES = {
    "tiny": {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "sliding_window": 8,
    },
    "0.5b": COMMON
    | {
        "hidden_size": 1536,
        "intermediate_size": 4608,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
    },
    # the paper's dense model; the MLP's three matrices of that width make it 1.9B parameters here
    "1.2b": COMMON
    | {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


@dataclass(frozen=True)
class Sweep:
    """What is measured.

    Attributes:
        batch_sizes: sequences that are decoded together.
        contexts: tokens in the cache when decoding starts.
        prompt_lengths: tokens of a prompt, batch 1.
        train_length: tokens of a training step, batch 1.
        decode_rounds, prefill_rounds, train_rounds: how often each row is timed, after the warm-up.
    """

    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    prompt_lengths: tuple[int, ...]
    train_length: int
    decode_rounds: int
    prefill_rounds: int
    train_rounds: int


TINY = Sweep((1, 2), (16, 32), (8, 16, 32), 16, decode_rounds=3, prefill_rounds=3, train_rounds=3)
ON_CPU = Sweep((1, 4), (256, 2048), (64, 128, 256), 64, decode_rounds=3, prefill_rounds=3, train_rounds=3)
ON_GPU = Sweep(
    (1, 4, 8), (512, 4608), (128, 512, 2048, 8192), 2048, decode_rounds=15, prefill_rounds=10, train_rounds=10
)

# by size, then by type of device
SWEEPS = {
    "tiny": {"cpu": TINY, "cuda": TINY},
    "0.5b": {"cpu": ON_CPU, "cuda": ON_GPU},
    "1.2b": {"cpu": ON_CPU, "cuda": ON_GPU},
}
