# SPDX-License-Identifier: Apache-2.0
"""A checkpoint against what its config says; vLLM itself takes a projection with one part of three for complete."""

from collections.abc import Iterable, Iterator

from torch import Tensor

from conversion_plt.plan.plan import expected_shapes

from .configs import ServedConfig

PUBLISHED_GATE, GATE = ".loop_gate_proj.", ".plt_gate."


def checked(
    weights: Iterable[tuple[str, Tensor]], config: ServedConfig, quantized: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they are, each checked against the config.

    Args:
        quantized: whether projections and the head may be stored otherwise, with scales beside them: only gates,
            norms, learned scales and the embedding are checked.

    Raises:
        ValueError: a tensor is unknown or has a wrong shape, when it comes; or some are missing, at the end.
    """
    needed = expected_shapes(config)
    # a tied head may be there, too
    wanted = {"lm_head.weight": needed["model.embed_tokens.weight"]} | needed
    if quantized:
        wanted = {name: shape for name, shape in wanted.items() if "_proj." not in name and name != "lm_head.weight"}
    missing = wanted.keys() & needed.keys()
    for name, tensor in weights:
        ours = name.replace(PUBLISHED_GATE, GATE)
        if ours in wanted:
            if tensor.shape != wanted[ours]:
                shape, expected = list(tensor.shape), list(wanted[ours])
                raise ValueError(f"The checkpoint's {name} must be of shape {expected} by its config, got {shape}.")
            missing.discard(ours)
        elif not quantized:
            raise ValueError(f"The checkpoint has a tensor {name} that its config does not ask for.")
        yield name, tensor
    if missing:
        raise ValueError(f"The checkpoint lacks {', '.join(sorted(missing))}.")
