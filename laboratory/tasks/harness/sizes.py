# SPDX-License-Identifier: Apache-2.0
"""The fields that the models of most experiments share."""

from measuring_plt.rows import ABLATION

from .definition import Cell

FIELDS = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "initializer_range": 0.06,
    # later loops start with a token and the state of the loop before in equal parts: embeddings start as small as
    # `initializer_range`, and normed states have size 1. With 1 instead, looped rows need many times the steps
    "hidden_scale": 0.06,
}
CELLS = tuple(map(Cell, ABLATION))
SMEARED = Cell("plain", smears=True)  # the control that has the token before, and no loop
