# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens with a cache and without: the same, if nothing that a tool changed is missing from either."""

import torch
from torch import Tensor


def greedy(model, input_ids: Tensor, **kwargs) -> Tensor:
    kwargs = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": 12} | kwargs
    return model.generate(input_ids=input_ids, do_sample=False, eos_token_id=None, **kwargs)


def assert_cached_equals_uncached(model, input_ids: Tensor, **kwargs) -> None:
    assert torch.equal(greedy(model, input_ids, **kwargs), greedy(model, input_ids, use_cache=False, **kwargs))
