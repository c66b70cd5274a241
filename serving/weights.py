# SPDX-License-Identifier: Apache-2.0
"""A checkpoint against what its config says; vLLM itself takes a projection with one part of three for complete."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from conversion_plt.plan import expected_shapes

from .configs import ServedConfig

PUBLISHED_GATE, GATE = ".loop_gate_proj.", ".plt_gate."


def checked(weights: Iterable[tuple[str, Tensor]], config: ServedConfig) -> Iterator[tuple[str, Tensor]]:
    """The same tensors.

    Raises:
        ValueError: a tensor is unknown or has a wrong shape, when it comes; or some are missing, at the end.
    """
    needed = expected_shapes(config)
    # a tied head may be there, too
    wanted = {"lm_head.weight": needed["model.embed_tokens.weight"]} | needed
    missing = set(needed)
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
