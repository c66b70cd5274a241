# SPDX-License-Identifier: Apache-2.0
"""The amount of work of `check_on_gpu`: on a GPU, and at a tiny size on a CPU to see that its code runs."""

from dataclasses import dataclass, field
from typing import Any

from measuring_plt.rows import PRUNED, ROWS


@dataclass(frozen=True)
class Scale:
    """The settings that differ between the two; all code is the same.

    Attributes:
        device: the device of models without a server; vLLM knows its own.
        size: the size of the timed models, a name in `SIZES`.
        dtype: the dtype of the timed models.
        fields: fields of PLTConfig for the models that are timed without a server.
        looped: fields of PLTConfig, by the name of a model whose tokens are compared.
        prompts: lengths of a batch that `generate` takes.
        new_tokens: after each prompt.
        attention: what is compared with `sdpa`.
        batches, context: that decode without a server.
        prompt_lengths: until the first token.
        rounds: in which all rows take turns.
        served_rows: names in `ROWS` of the server's benchmark.
        served_batches, served_contexts, served_prompts: of the server.
        served_together: batches whose tokens are compared.
        waiting: requests that do not all fit into `few_blocks` blocks of the cache.
        steps: that the server decodes in a round.
        kv_bytes: at most, of the cache of each engine that is timed.
        engine: options of every engine whose tokens are compared.
        eager: whether what is timed runs without vLLM's compiler and graphs.
    """

    device: str
    size: str
    dtype: str
    looped: dict[str, dict[str, Any]]
    prompts: list[int]
    new_tokens: int
    attention: str
    batches: list[int]
    context: int
    prompt_lengths: list[int]
    rounds: int
    served_rows: list[str]
    served_batches: list[int]
    served_contexts: list[int]
    served_prompts: list[int]
    served_together: list[int]
    waiting: int
    few_blocks: int
    steps: int
    kv_bytes: int
    fields: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)
    eager: bool = False


FULL = Scale(
    device="cuda",
    size="1.3b",
    dtype="bfloat16",
    looped={name: ROWS[name].fields for name in ("plt-2", "plt-3", "loop-2")},
    prompts=[150, 70, 17, 1],
    new_tokens=48,
    attention="flash_attention_2",
    batches=[1, 16],
    context=512,
    prompt_lengths=[1024, 4096, 16384],
    rounds=15,
    served_rows=["plain", "loop-2", "plt-2", PRUNED],
    served_batches=[1, 4, 32, 64],
    served_contexts=[32, 4096],
    served_prompts=[1024, 4096, 16384],
    served_together=[1, 2, 4, 8, 16, 32, 64],
    waiting=24,
    few_blocks=64,
    steps=16,
    kv_bytes=12 << 30,
)
DRY = Scale(
    device="cpu",
    size="tiny",
    dtype="float32",
    looped={"plt-2": ROWS["plt-2"].fields | {"num_hidden_layers": 1}},
    prompts=[20, 1],
    new_tokens=6,
    attention="eager",  # there is no flash attention on a CPU
    batches=[1],
    context=16,
    prompt_lengths=[16, 32],
    rounds=2,
    served_rows=["plain"],  # each is a process that imports vLLM; the benchmark's test has two
    served_batches=[1, 2],
    served_contexts=[8, 64],
    served_prompts=[32],
    served_together=[4, 1],  # the CPU build may trace the first step, which must not be of one row
    waiting=8,
    few_blocks=24,
    steps=2,
    kv_bytes=64 << 20,
    fields={"num_hidden_layers": 1, "vocab_size": 512},
    engine={"kv_cache_memory_bytes": 64 << 20},
    eager=True,
)
