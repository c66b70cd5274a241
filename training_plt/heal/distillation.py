# SPDX-License-Identifier: Apache-2.0
"""Learning from a teacher: its distribution of the next token.

B batch, T tokens, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from modeling_plt import PLTForCausalLM

from ..data.packing import NO_LABEL
from ..trainer.losses import is_wanted


@dataclass
class DistillationArguments:
    """How a run learns from a teacher, if it has one."""

    kl_weight: float = field(
        default=4.0, metadata={"help": "Weight of the divergence from the teacher's distribution in the loss."}
    )
    kl_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of both distributions in the divergence."}
    )

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise ValueError(f"`--kl-weight` must be at least 0, got {self.kl_weight}.")
        if self.kl_temperature <= 0:
            raise ValueError(f"`--kl-temperature` must be above 0, got {self.kl_temperature}.")


def add_teacher(model: PLTForCausalLM, teacher: PreTrainedModel, arguments: DistillationArguments) -> None:
    """From now on, in training, the model's loss has the divergence from the teacher added to it.

    It is computed inside the model's forward, and counts labels and `num_items_in_batch` as the text's loss does.
    """
    teacher.eval().requires_grad_(False)

    def compare(module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if not is_wanted(module, kwargs):
            return outputs
        labels = kwargs["labels"]
        inputs = {name: kwargs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in kwargs}
        with torch.no_grad():
            logits = teacher.to(labels.device)(**inputs, use_cache=False).logits
        num_items = kwargs.get("num_items_in_batch")
        divergence = kl_divergence(outputs.logits, logits, labels, arguments.kl_temperature, num_items)
        outputs.loss = outputs.loss + arguments.kl_weight * divergence
        return outputs

    model.register_forward_hook(compare, with_kwargs=True)


def kl_divergence(
    logits: Tensor, taught: Tensor, labels: Tensor, temperature: float, num_items: Tensor | int | None
) -> Tensor:
    """KL(teacher || student) of `[B, T, V]` where there are labels `[B, T]`, per label and times temperature^2.

    The first token of an entry is predicted by none. The square keeps gradients of the same size at every
    temperature (Hinton et al., arXiv 1503.02531).
    """
    has_label = labels[:, 1:] != NO_LABEL
    student, teacher = (
        (each[:, :-1][has_label].float() / temperature).log_softmax(dim=-1) for each in (logits, taught)
    )
    total = kl_div(student, teacher, log_target=True, reduction="sum")
    return temperature**2 * total / (has_label.sum() if num_items is None else num_items)
