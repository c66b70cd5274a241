# SPDX-License-Identifier: Apache-2.0
"""A checkpoint against what its config says; vLLM itself takes a projection with one part of three for complete."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from modeling_plt import PLTForCausalLM

from .configs import ServedConfig

PUBLISHED_GATE, GATE = ".loop_gate_proj.", ".plt_gate."


def checked(weights: Iterable[tuple[str, Tensor]], config: ServedConfig) -> Iterator[tuple[str, Tensor]]:
    """The same tensors.

    Raises:
        ValueError: a tensor is unknown or has a wrong shape, when it comes; or some are missing, at the end.
    """
    wanted = shapes_of(config)
    missing = set(wanted) - {"lm_head.weight"} if config.tie_word_embeddings else set(wanted)
    for name, tensor in weights:
        ours = name.replace(PUBLISHED_GATE, GATE)
        if ours not in wanted:
            raise ValueError(f"The checkpoint has a tensor {name} that its config does not ask for.")
        if tensor.shape != wanted[ours]:
            shape, expected = list(tensor.shape), list(wanted[ours])
            raise ValueError(f"The checkpoint's {name} must be of shape {expected} by its config, got {shape}.")
        missing.discard(ours)
        yield name, tensor
    if missing:
        raise ValueError(f"The checkpoint lacks {', '.join(sorted(missing))}.")


def shapes_of(config: ServedConfig) -> dict[str, torch.Size]:
    """Of every tensor that a PLT of this config saves."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in PLTForCausalLM(config).state_dict().items()}
