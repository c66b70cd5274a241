# SPDX-License-Identifier: Apache-2.0
"""Switching the PLT mechanisms on: shift, shared KV and gated window, with start values for what is new."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from configuration_plt import PLTConfig

from .plan import Plan, expected_shapes, make_config
from .shapes import check_shapes

EXACT_GATE = (
    0.999999  # leaves the window a weight of 1e-6: too small to change logits by 1e-4, large enough for a gradient
)
LOOPED_GATE = 0.1  # later loops of a looped source were trained on their own keys


@dataclass(frozen=True)
class PLTStart:
    """Start values of a PLT; None takes a default that depends on the source."""

    num_loops: int | None = None
    sliding_window: int | None = None
    embedding_scale: float | None = None
    hidden_scale: float | None = None
    learned_scales: bool | None = None
    gate: float | None = None  # weight of the shared KV, in (0, 1)


class ChosenStart(NamedTuple):
    """Start values when every default is filled in."""

    num_loops: int
    sliding_window: int
    embedding_scale: float
    hidden_scale: float
    learned_scales: bool
    gate: float


def switch_on(exact: Plan, start: PLTStart) -> Plan:
    """The plan of a PLT that starts from the weights of a source.

    Raises:
        ValueError: the source is a PLT already, its gates are trained and `start.gate` is set, or a value is refused.
    """
    config = exact.config
    if config.num_loops > 1 and config.loop_shift:
        raise ValueError(f"`--to-plt` is for models that are not a PLT yet; this {exact.source.title} is one.")
    if config.has_gate and start.gate is not None:
        raise ValueError(f"`--gate-start` is for new gates; this {exact.source.title} has trained ones.")
    chosen = default_start(exact)._replace(**{name: given for name, given in vars(start).items() if given is not None})
    check_start(chosen, config)
    fields = {name: value for name, value in chosen._asdict().items() if name != "gate"}
    mechanisms = {"loop_shift": True, "loop_attention": "gated_window"}
    config = make_config(config.to_dict() | mechanisms | fields)
    present, expected = exact.shapes(), expected_shapes(config)
    new = {name: shape for name, shape in expected.items() if name not in present}
    check_shapes(present | new, expected)
    added = {name: start_value(name, shape, chosen).to(config.dtype) for name, shape in new.items()}
    return replace(exact, config=config, added=added)


def check_start(start: ChosenStart, config: PLTConfig) -> None:
    """ValueError if a start value is out of the range that the source allows."""
    positions = max(config.max_position_embeddings, config.sliding_window)
    if start.sliding_window > positions:
        raise ValueError(f"`--window` must be at most the source's {positions} positions, got {start.sliding_window}.")
    assert isinstance(config.dtype, torch.dtype)  # `make_plan` sets it
    largest = torch.finfo(config.dtype).max
    for option, scale in (("--embedding-scale", start.embedding_scale), ("--hidden-scale", start.hidden_scale)):
        if not abs(scale) <= largest:
            raise ValueError(f"`{option}` must be a number of {config.dtype}, got {scale}.")
    if not 0 < start.gate < 1:
        raise ValueError(f"`--gate-start` must be between 0 and 1, both excluded, got {start.gate}.")


def default_start(exact: Plan) -> ChosenStart:
    """The defaults for a source; the scales are parameters, so that training can move them.

    - A plain source keeps its logits: later loops read the embedding alone, and the gate leaves the window almost no
      weight.
    - A loop that read its own token's state was not trained on another token's: it starts from the embedding too.
    - A loop that mixes embedding and state keeps its scales.
    """
    config = exact.config
    if config.num_loops == 1:
        return ChosenStart(2, config.sliding_window, 1.0, 0.0, True, EXACT_GATE)
    assert config.hidden_scale is not None  # the config fills it in
    own_scales = config.embedding_scale, config.hidden_scale
    embedding_scale, hidden_scale = own_scales if config.embedding_scale != 0 else (1.0, 0.0)
    return ChosenStart(
        config.num_loops, config.sliding_window, embedding_scale, hidden_scale, learned_scales=True, gate=LOOPED_GATE
    )


def start_value(name: str, shape: tuple[int, ...], start: ChosenStart) -> Tensor:
    """The start of a new tensor: the same gate for every head and token, or a scale."""
    leaf = name.removeprefix("model.").split("plt_gate.")[-1]
    value = {
        "weight": 0.0,
        "bias": math.log(start.gate / (1 - start.gate)),
        "gate_norm.weight": 1.0,
        "embedding_scale": start.embedding_scale,
        "hidden_scale": start.hidden_scale,
    }[leaf]
    return torch.full(shape, value)
