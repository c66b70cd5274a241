# SPDX-License-Identifier: Apache-2.0
"""A checkpoint against what its config says; vLLM itself takes a projection with one part of three for complete."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention

from conversion_plt.plan.plan import expected_shapes

from .configs import ServedConfig

PUBLISHED_GATE, GATE = ".loop_gate_proj.", ".plt_gate."
EXPERTS = re.compile(r"(.*\.experts)\.routed_experts\.(w13|w2)_(.*)")  # vLLM's names of those of all experts
OF_EXPERTS = {"w13": ("gate_proj", "up_proj"), "w2": ("down_proj",)}
# what a quantized folder stores otherwise
QUANTIZED = re.compile(r".*_proj\..*|lm_head\.weight|model\.adapter\.weight")
SCALES = {"weight_scale", "weight_scale_inv", "scales"}  # of weights, without which they mean nothing


def checked(
    weights: Iterable[tuple[str, Tensor]], config: ServedConfig, stored: set[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors as they are, each checked against the config.

    Args:
        stored: of a quantized folder, the names by `stored_names`. Projections, the adapter and the head are then
            stored otherwise, with scales beside them: of these, the names are checked, and not the shapes, which vLLM
            checks.

    Raises:
        ValueError: a tensor is unknown or has a wrong shape, when it comes; or some are missing, at the end.
    """
    needed = expected_shapes(config)
    # a tied head may be there, too
    wanted = {"lm_head.weight": needed["model.embed_tokens.weight"]} | needed
    if stored is not None:
        wanted = {name: shape for name, shape in wanted.items() if not QUANTIZED.fullmatch(name)}
    seen = set()
    for name, tensor in weights:
        ours = name.replace(PUBLISHED_GATE, GATE)
        if ours in wanted:
            if tensor.shape != wanted[ours]:
                shape, expected = list(tensor.shape), list(wanted[ours])
                raise ValueError(f"The checkpoint's {name} must be of shape {expected} by its config, got {shape}.")
        elif stored is None:
            raise ValueError(f"The checkpoint has a tensor {name} that its config does not ask for.")
        elif name.endswith(".bias") and name not in needed and tensor.any():
            raise ValueError(f"The checkpoint has a bias {name} that its config does not ask for.")
        seen.add(ours)
        yield name, tensor
    missing = (wanted.keys() & needed.keys()) - seen
    if stored is not None:
        # vLLM makes some itself, as zeros of a symmetric format: of these a folder has none
        kinds = {kind_of(name) for name in seen} | SCALES
        missing |= {name for name in stored - seen if kind_of(name) in kinds}
    if missing:
        raise ValueError(f"The checkpoint lacks {', '.join(sorted(missing))}.")


def kind_of(name: str) -> str:
    """What a tensor is to its projection: a weight, a scale of a weight, ..."""
    return name.rpartition(".")[2]


def stored_names(model: nn.Module, packed: Mapping[str, Sequence[str]], num_experts: int) -> set[str]:
    """The names in files of all that vLLM has built, in whatever format: each part of what it puts together.

    Args:
        packed: the parts of projections that are one product.
        num_experts: of a sparse layer.
    """
    # scales of keys and values, which a folder may have
    of_keys = {name for name, module in model.named_modules() if isinstance(module, Attention)}
    names = set()
    for name, _ in model.named_parameters():
        prefix, _, kind = name.rpartition(".")
        if prefix in of_keys:
            continue
        if found := EXPERTS.fullmatch(name):
            prefix, which, kind = found.groups()
            names |= {
                f"{prefix}.{expert}.{part}.{kind}" for expert in range(num_experts) for part in OF_EXPERTS[which]
            }
            continue
        module, _, last = prefix.rpartition(".")
        names |= {f"{module}.{part}.{kind}".lstrip(".") for part in packed.get(last, (last,))}
    return names
