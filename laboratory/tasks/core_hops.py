# SPDX-License-Identifier: Apache-2.0
"""Which layers to loop: all, or those between a prelude and a coda; on hops of induction."""

from .cores import CELLS
from .harness.definition import Experiment
from .harness.sizes import FIELDS
from .hops import Hops

EXPERIMENT = Experiment(
    name="core_hops",
    question="How many hops of induction does a loop of all layers learn, and one of those between prelude and coda?",
    task=Hops(length=64, max_hops=8),  # four layers learn four hops without a loop
    metric="accuracy",
    fields=FIELDS | {"num_hidden_layers": 4, "sliding_window": 16},
    cells=CELLS,
    learning_rates=(2e-3, 4e-3),
    steps=1000,
    batch_size=32,
    tuning_steps=400,
    validates=True,
)
