# SPDX-License-Identifier: Apache-2.0
"""The model whose tokens are compared: each of its weights moves its answers, and rounding does not move them much."""

from typing import Any

import torch

from modeling_plt import PLTForCausalLM

from ..tiny import tiny_model

# rounding to bf16 moves log probabilities by less than 0.25; a window that is one too long by 0.7, a gate of 1/2 by 2
INITIALIZER_RANGE = 0.05


def checked_model(**fields: Any) -> PLTForCausalLM:
    model = tiny_model(**fields, initializer_range=INITIALIZER_RANGE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1, 0.3)
            elif "plt_gate" in name:
                parameter.normal_(0, 0.5)
    return model
