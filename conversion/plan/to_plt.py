# SPDX-License-Identifier: Apache-2.0
"""Switching the PLT mechanisms on: shift, shared KV and gated window, with start values for what is new."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from configuration_plt import PLTConfig

from .cut import is_plain
from .plan import Plan, expected_shapes, make_config
from .shapes import check_shapes

EXACT_GATE = (
    0.999999  # leaves the window a weight of 1e-6: too small to change logits by 1e-4, large enough for a gradient
)
LOOPED_GATE = 0.1  # later loops of a looped source were trained on their own keys


FAR = (
    "Later loops of the source were trained on their own token's state; they read the previous token's now, so the "
    "PLT starts far from its source."
)


@dataclass(frozen=True)
class PLTStart:
    """Start values of a PLT; None takes a default that depends on the source."""

    num_loops: int | None = None
    sliding_window: int | None = None
    loop_input: str | None = None  # "sum" or "adapter"
    embedding_scale: float | None = None
    hidden_scale: float | None = None
    learned_scales: bool | None = None
    gate: float | None = None  # weight of the shared KV, in (0, 1)

    @property
    def sets_scales(self) -> bool:
        return any(value is not None for value in (self.embedding_scale, self.hidden_scale, self.learned_scales))


class ChosenStart(NamedTuple):
    """Start values when every default is filled in; an adapter has no scales."""

    num_loops: int
    sliding_window: int
    gate: float
    loop_input: str
    embedding_scale: float = 1.0
    hidden_scale: float | None = None
    learned_scales: bool = False


def switch_on(exact: Plan, start: PLTStart) -> Plan:
    """The plan of a PLT that starts from the weights of a source.

    Raises:
        ValueError: the source is a PLT already, it has gates or an input of later loops and `start` asks for others,
            or a value is refused.
    """
    config = exact.config
    refuse_what_is_there(exact, start)
    chosen = default_start(config, start)._replace(
        **{name: given for name, given in vars(start).items() if given is not None}
    )
    check_start(chosen, config)
    fields = {name: value for name, value in chosen._asdict().items() if name != "gate"}
    mechanisms = {"loop_shift": True, "loop_attention": "gated_window", "trained_loops": None}
    config = make_config(config.to_dict() | mechanisms | fields)
    present, expected = exact.shapes(), expected_shapes(config)
    new = {name: shape for name, shape in expected.items() if name not in present}
    check_shapes(present | new, expected)
    added = {name: start_value(name, shape, chosen).to(config.dtype) for name, shape in new.items()}
    notes = exact.notes if is_plain(exact.config) or exact.config.loop_shift else (*exact.notes, FAR)
    return replace(exact, config=config, added=added, notes=notes)


def refuse_what_is_there(exact: Plan, start: PLTStart) -> None:
    """ValueError if a start value is for what the source has already."""
    config, title = exact.config, exact.source.title
    if config.most_loops > 1 and config.loop_shift:
        raise ValueError(f"`--to-plt` is for models that are not a PLT yet; this {title} is one.")
    if start.gate is not None and any(".plt_gate." in name for name in exact.shapes()):
        raise ValueError(f"`--gate-start` is for new gates; this {title} has trained ones.")
    if start.loop_input is not None and not is_plain(config):
        raise ValueError(f"`--loop-input` is for plain sources; this {title} has an input of later loops.")
    if start.sets_scales and "adapter" in (start.loop_input, config.loop_input):
        raise ValueError("`--embedding-scale`, `--hidden-scale` and `--learned-scales` are for a sum, got an adapter.")


def check_start(start: ChosenStart, config: PLTConfig) -> None:
    """ValueError if a start value is out of the range that the source allows."""
    positions = max(config.max_position_embeddings, config.sliding_window)
    if start.sliding_window > positions:
        raise ValueError(f"`--window` must be at most the source's {positions} positions, got {start.sliding_window}.")
    assert isinstance(config.dtype, torch.dtype)  # `make_plan` sets it
    largest = torch.finfo(config.dtype).max
    for option, scale in (("--embedding-scale", start.embedding_scale), ("--hidden-scale", start.hidden_scale)):
        if scale is not None and not abs(scale) <= largest:
            raise ValueError(f"`{option}` must be a number of {config.dtype}, got {scale}.")
    if not 0 < start.gate < 1:
        raise ValueError(f"`--gate-start` must be between 0 and 1, both excluded, got {start.gate}.")


def default_start(config: PLTConfig, start: PLTStart) -> ChosenStart:
    """The defaults for a source; scales are parameters, so that training can move them.

    - A plain source keeps its logits: later loops read the embedding or what the prelude makes of it, and the gate
      leaves the window almost no weight.
    - A loop that read its own token's state was not trained on another token's: it starts from the embedding too.
    - A loop that mixes embedding and state keeps its scales, one with an adapter keeps that.
    """
    if is_plain(config):
        chosen = ChosenStart(2, config.sliding_window, EXACT_GATE, start.loop_input or "sum")
    else:
        chosen = ChosenStart(max(config.most_loops, 2), config.sliding_window, LOOPED_GATE, config.loop_input)
    if chosen.loop_input == "adapter":
        return chosen
    mixes = not is_plain(config) and config.embedding_scale != 0
    scales = (config.embedding_scale, config.hidden_scale) if mixes else (1.0, 0.0)
    return chosen._replace(embedding_scale=scales[0], hidden_scale=scales[1], learned_scales=True)


def start_value(name: str, shape: tuple[int, ...], start: ChosenStart) -> Tensor:
    """The start of a new tensor: the same gate for every head and token, a scale, or an adapter that drops states."""
    leaf = name.removeprefix("model.").split("plt_gate.")[-1]
    if leaf == "adapter.weight":  # the state's columns come first
        return torch.cat((torch.zeros(shape[0], shape[0]), torch.eye(shape[0])), dim=1)
    value = {
        "weight": 0.0,
        "bias": math.log(start.gate / (1 - start.gate)),
        "gate_norm.weight": 1.0,
        "embedding_scale": start.embedding_scale,
        "hidden_scale": start.hidden_scale,
    }[leaf]
    assert value is not None  # a model with an adapter has no scales
    return torch.full(shape, value)
