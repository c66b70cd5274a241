# SPDX-License-Identifier: Apache-2.0
"""Which layers to loop: all, or those between a prelude and a coda; on Python source."""

from .harness.definition import Cell, Experiment
from .harness.sizes import FIELDS
from .language import Language

CORE = {"num_prelude_layers": 1, "num_coda_layers": 1}
# as many parameters, but those of the gates; all loops run eight layers, those of the core six
CELLS = (Cell("plain"), Cell("loop-2"), Cell("loop-2", CORE), Cell("plt-2", CORE))

EXPERIMENT = Experiment(
    name="cores",
    question="Is it better to loop all layers, or those between a prelude and a coda?",
    task=Language(),
    metric="bits",
    fields=FIELDS | {"num_hidden_layers": 4, "sliding_window": 16},
    cells=CELLS,
    learning_rates=(2e-3, 4e-3),
    steps=1000,
    batch_size=8,
    tuning_steps=400,
    validates=True,
)
