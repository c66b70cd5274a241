# SPDX-License-Identifier: Apache-2.0
"""How vLLM groups the layers of a PLT: those of a kind share its memory, in groups of one size.

The kinds are loops of layers that keep all their keys, those that keep a window, and slices of the carry.
"""

from configuration_plt import PLTConfig

MOST_PADDING = 0.1  # of the layers with keys


def has_carry(config: PLTConfig) -> bool:
    """Whether later loops read the state of the token before, which must be kept from step to step."""
    return config.num_loops > 1 and config.loop_shift


def layers_with_keys(config: PLTConfig) -> tuple[int, int]:
    """How many layers of vLLM keep all their keys, and how many a window: a layer is one for each of its loops."""
    full = sum(len(stage.layers) * len(stage.full_loops(stage.loops)) for stage in config.stages)
    windowed = sum(len(stage.layers) * len(stage.windowed_loops(stage.loops)) for stage in config.stages)
    return full, windowed


def group_size(*numbers: int) -> int:
    """The layers of a group, for so many of each kind: those of the smallest, or of the greatest if that is near."""
    kinds = [number for number in numbers if number]
    return max(kinds) if max(kinds) < 1.5 * min(kinds) else min(kinds)


def num_slices(config: PLTConfig) -> int:
    """How many slices a carry has: as many as layers are in each of vLLM's groups, which it then makes of this size.

    A group whose layers do not suffice is filled up with memory that nothing uses. All layers with keys of their own
    loop, so the groups are as large as the looped stage, unless a prelude or a coda makes smaller ones fit better.
    """
    kinds = layers_with_keys(config)

    def padding(slices: int) -> int:
        group = group_size(*kinds, slices)
        return sum(-number % group for number in kinds)

    sizes = range(len(config.looped_stage.layers), 0, -1)
    return next(size for size in sizes if padding(size) <= MOST_PADDING * sum(kinds))
