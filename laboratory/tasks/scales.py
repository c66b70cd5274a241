# SPDX-License-Identifier: Apache-2.0
"""The effect of the state's weight in later loops, on the task of `reach`."""

from .harness.definition import Cell, Experiment
from .harness.sizes import FIELDS
from .reach import Reach

EVERYTHING = 32  # a window as long as the sequences

EXPERIMENT = Experiment(
    name="scales",
    question="With which weight of the loop before does a later loop learn?",
    task=Reach(),
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 1, "sliding_window": EVERYTHING},
    cells=(
        *(Cell(row, {"hidden_scale": scale}) for row in ("loop-2", "plt-2") for scale in (0.06, 0.25, 1.0)),
        *(Cell(row, {"hidden_scale": 1.0}, longer=4) for row in ("loop-2", "plt-2")),
    ),
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=600,
    batch_size=32,
)
