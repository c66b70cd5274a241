# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import TrainingArguments

from modeling_plt.experts_plt import PLTSparseMoeBlock


class MuonAndAdamW(Optimizer):
    """`torch.optim.Muon` and `AdamW` with one learning rate.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`, arXiv 2502.16982), so that a rate serves both.
    Of what AdamW has, that decays which is named. The matrices of the layers all do.
    """

    def __init__(self, model: nn.Module, arguments: TrainingArguments, decaying: list[str]):
        matrices, others = split_parameters(model)
        self.experts = list(experts_of(model))
        matrices += [matrix for stacked in self.experts for matrix in stacked.matrices]
        named = {id(parameter) for name, parameter in model.named_parameters() if name in set(decaying)}
        shared: dict[str, Any] = {"lr": arguments.learning_rate, "weight_decay": arguments.weight_decay}
        groups: list[dict[str, Any]] = [
            {"params": [each for each in others if id(each) in named]},
            {"params": [each for each in others if id(each) not in named], "weight_decay": 0.0},
        ]
        self.muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **shared)
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        self.adamw = AdamW(groups, betas=betas, eps=arguments.adam_epsilon, **shared)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self.share()

    def share(self) -> None:
        """Both work on the groups and the state of the whole, which the schedule and checkpoints see."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a trainer gives none
        for stacked in self.experts:
            stacked.hand_out_gradient()
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for stacked in self.experts:
            stacked.whole.grad = None


class Stacked:
    """The matrices of all experts of a layer, which the model holds as one tensor `[E, rows, columns]`.

    Muon takes matrices: it gets views of them.

    Args:
        whole: the parameter.
        per_expert: matrices that stand one above the other in each; gate and up projection are two.
    """

    def __init__(self, whole: nn.Parameter, per_expert: int):
        self.whole, self.per_expert = whole, per_expert
        self.matrices = [nn.Parameter(matrix) for matrix in self.apart(whole.detach())]

    def apart(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor.unflatten(1, (self.per_expert, -1)).flatten(0, 1).unbind()

    def hand_out_gradient(self) -> None:
        """Give each matrix its part of the gradient.

        Raises:
            RuntimeError: the weights are elsewhere since the optimizer was made, so that steps would be lost.
        """
        if self.matrices[0].data_ptr() != self.whole.data_ptr():
            raise RuntimeError("The weights of experts must stay where they were when the optimizer was made.")
        gradients = self.matrices if self.whole.grad is None else self.apart(self.whole.grad)
        for matrix, gradient in zip(self.matrices, gradients, strict=True):
            matrix.grad = None if self.whole.grad is None else gradient


def experts_of(model: nn.Module) -> Iterator[Stacked]:
    """The weights of all experts."""
    for module in model.modules():
        if isinstance(module, PLTSparseMoeBlock):
            yield Stacked(module.experts.gate_up_proj, per_expert=2)
            yield Stacked(module.experts.down_proj, per_expert=1)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices that transform states, but those of experts, and all others: embeddings, head, norms, gates, ..."""
    modules = [module for name, module in model.named_modules() if {"layers", "adapter"} & set(name.split("."))]
    weights = [module.weight for module in modules if isinstance(module, nn.Linear) and is_matrix(module)]
    matrices: dict[int, nn.Parameter] = {id(weight): weight for weight in weights}  # type: ignore[misc]
    taken = matrices.keys() | {id(stacked.whole) for stacked in experts_of(model)}
    return [*matrices.values()], [each for each in model.parameters() if id(each) not in taken]


def is_matrix(module: nn.Linear) -> bool:
    """Whether it has several outputs; the gate of a shared expert has one."""
    return module.out_features > 1
