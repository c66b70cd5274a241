# SPDX-License-Identifier: Apache-2.0
"""Which parameters weight decay pulls towards zero: matrices and embeddings, but no gates and no scales."""

from torch import nn
from transformers import Trainer

# Zero is no absence for these. A scale that decays takes a later loop its input. Gate weights are matrices,
# [heads, D], but decay would pull every gate towards 0.5, whatever the model has found.
GATES_AND_SCALES = ("plt_gate", "embedding_scale", "hidden_scale")
VECTORS = ("bias", "lora_magnitude_vector")  # besides those of norms


def is_gate_or_scale(name: str) -> bool:
    """Whether a parameter of this name is of a gate, its norm included, or a learned scale."""
    return any(part in GATES_AND_SCALES for part in name.split("."))


def decaying_names(model: nn.Module) -> list[str]:
    """Names of the parameters that decay: those of two dimensions and more, without gates.

    They are chosen by name, because a sharded parameter may be flat.
    """
    return [
        name
        for name, _ in model.named_parameters()
        if not is_gate_or_scale(name) and not any("norm" in part or part in VECTORS for part in name.split("."))
    ]


class SpareGatesAndScales(Trainer):
    """A Trainer, which goes before others; by itself, a Trainer spares norms and biases only.

    With `decay_gates_and_scales` the choice is left to that Trainer.
    """

    decay_gates_and_scales = False

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """As Trainer's, which asks for them when it makes the optimizer."""
        if self.decay_gates_and_scales:
            return super().get_decay_parameter_names(model)
        return decaying_names(model)
