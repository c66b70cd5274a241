# SPDX-License-Identifier: Apache-2.0
"""The timed parts of a model: a few decoded tokens, the first one after a prompt, or all logits of a prompt."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from modeling_plt.names_plt import THEIRS

from .filled_cache import fill, new_cache

TOKENS = 4  # decoded per row and round


def compiled_step(model: PreTrainedModel) -> Callable:
    """One graph of the model's forward, replayed as a CUDA graph where there is a GPU."""
    # each row of the table is another graph of the same code
    options: dict[str, Any] = {"isolate_recompiles": True}  # which torch's overloads do not list
    return torch.compile(model.forward, fullgraph=True, dynamic=False, mode="reduce-overhead", **options)


@torch.inference_mode()
def greedy_steps(
    model: PreTrainedModel, batch_size: int, context: int, max_cache_len: int | None = None
) -> Callable[[], None]:
    """A sample that decodes `TOKENS` more tokens after a cache of `context`, each time it is called.

    Args:
        max_cache_len: of a static cache, with which the step is compiled; None for a dynamic one.
    """
    cache = new_cache(model.config, max_cache_len)
    cache = fill(cache, model.config, batch_size, context, model.device, model.dtype)
    step = model if max_cache_len is None else compiled_step(model)
    token = torch.ones(batch_size, 1, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def sample() -> None:
        nonlocal token
        for _ in range(TOKENS):
            token = step(token, use_cache=True, **{THEIRS: cache}).logits[:, -1:].argmax(-1)

    return sample


def first_token(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that fills a new cache with `input_ids` `[1, T]` and picks the next token."""

    @torch.inference_mode()
    def sample() -> None:
        model(input_ids, logits_to_keep=1, use_cache=True).logits[:, -1].argmax(-1)

    return sample


def all_logits(model: PreTrainedModel, input_ids: torch.Tensor) -> Callable[[], None]:
    """A sample that computes the logits at every position of `input_ids` `[1, T]`, without a cache."""

    @torch.inference_mode()
    def sample() -> None:
        model(input_ids, use_cache=False)

    return sample
