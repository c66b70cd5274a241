# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import TrainingArguments


class MuonAndAdamW(Optimizer):
    """`torch.optim.Muon` and `AdamW` with one learning rate.

    Muon's updates are scaled to the size of AdamW's (`match_rms_adamw`, arXiv 2502.16982), so that a rate serves both.
    Of what AdamW has, that decays which is named. The matrices of the layers all do.
    """

    def __init__(self, model: nn.Module, arguments: TrainingArguments, decaying: list[str]):
        matrices, others = split_parameters(model)
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
        self.muon.step()
        self.adamw.step()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices that transform states, and all others: embeddings, head, norms, gates, scales, biases."""
    modules = [module for name, module in model.named_modules() if ".layers." in f".{name}."]
    weights = [module.weight for module in modules if isinstance(module, nn.Linear)]
    matrices: dict[int, nn.Parameter] = {id(weight): weight for weight in weights}  # type: ignore[misc]
    return [*matrices.values()], [each for each in model.parameters() if id(each) not in matrices]
