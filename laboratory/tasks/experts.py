# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts and dense models of as many active parameters, on Python source."""

from .harness.definition import Cell, Experiment
from .harness.sizes import FIELDS
from .language import Language

ROWS = ("plain", "loop-2", "plt-2")
# two of eight experts are as wide as the dense MLP
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
BALANCED = {"router_aux_loss_coef": 0.01}  # OLMoE's

EXPERIMENT = Experiment(
    name="experts",
    question="Does a loop help a mixture of experts as it helps a dense model of as many active parameters?",
    task=Language(),
    metric="bits",
    fields=FIELDS | {"num_hidden_layers": 2, "sliding_window": 16},
    cells=(*map(Cell, ROWS), *(Cell(row, EXPERTS | BALANCED) for row in ROWS)),
    learning_rates=(2e-3, 4e-3, 8e-3),
    steps=1000,
    batch_size=8,
    tuning_steps=400,
    validates=True,
)
