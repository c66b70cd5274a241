# SPDX-License-Identifier: Apache-2.0
"""Numbers of layers as people write them: `0-3,10-17,18-21`."""

import re
from collections.abc import Sequence


def read_layers(text: str) -> tuple[int, ...]:
    """Numbers of layers, written as `0-3,10,18-21`.

    Raises:
        ValueError: it is written otherwise, or does not name ever higher layers.
    """
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part)
        if found is None:
            raise ValueError
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    if not layers or layers != sorted(set(layers)):
        raise ValueError
    return tuple(layers)


def spans(layers: Sequence[int]) -> str:
    """Numbers of layers as `read_layers` reads them."""
    runs: list[list[int]] = []
    for layer_idx in layers:
        if runs and runs[-1][-1] == layer_idx - 1:
            runs[-1].append(layer_idx)
        else:
            runs.append([layer_idx])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
