# SPDX-License-Identifier: Apache-2.0
"""Learning from a teacher: its distribution of the next token, and what its attention adds.

B batch, T tokens, V vocabulary, D hidden, N layers, L loops.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from modeling_plt import PLTForCausalLM
from modeling_plt.attention_plt import PLTAttention

from .losses import is_wanted
from .packing import NO_LABEL


@dataclass
class DistillationArguments:
    """How a run learns from a teacher, if it has one."""

    kl_weight: float = field(default=4.0, metadata={"help": "of the divergence from the teacher's distribution"})
    kl_temperature: float = field(default=1.0, metadata={"help": "of both distributions"})
    attention_weight: float = field(
        default=0.0, metadata={"help": "of the distance of attention outputs, for a teacher of equal layers and loops"}
    )

    def __post_init__(self) -> None:
        for name in ("kl_weight", "attention_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`--{name}` must be at least 0, got {getattr(self, name)}.")
        if self.kl_temperature <= 0:
            raise ValueError(f"`--kl_temperature` must be above 0, got {self.kl_temperature}.")


def add_teacher(model: PLTForCausalLM, teacher: PreTrainedModel, arguments: DistillationArguments) -> None:
    """From now on, in training, the model's loss has the distance to the teacher added to it.

    It is computed inside the model's forward, and counts labels and `num_items_in_batch` as the text's loss does.

    Raises:
        ValueError: attention outputs are to be compared with those of a teacher of other layers or loops.
    """
    teacher.eval().requires_grad_(False)
    weight = arguments.attention_weight
    if weight:
        refuse_other_attention(model, teacher)
    seen = AttentionOutputs(model) if weight else None
    taught = AttentionOutputs(teacher) if weight else None

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
        if seen is not None and taught is not None:
            share = 1.0 if num_items is None else count(labels) / num_items  # of a batch in an accumulated one
            outputs.loss = outputs.loss + weight * share * distance(seen.take(), taught.take())
        return outputs

    model.register_forward_hook(compare, with_kwargs=True)


def count(labels: Tensor) -> Tensor:
    """How many of `[B, T]` a loss is computed for: the first token of an entry is predicted by none."""
    return (labels[:, 1:] != NO_LABEL).sum()


def kl_divergence(
    logits: Tensor, taught: Tensor, labels: Tensor, temperature: float, num_items: Tensor | int | None
) -> Tensor:
    """KL(teacher || student) of `[B, T, V]` where there are labels `[B, T]`, per label and times temperature^2.

    The square keeps gradients of the same size at every temperature (Hinton et al., arXiv 1503.02531).
    """
    is_wanted = labels[:, 1:] != NO_LABEL
    student, teacher = (
        (each[:, :-1][is_wanted].float() / temperature).log_softmax(dim=-1) for each in (logits, taught)
    )
    total = kl_div(student, teacher, log_target=True, reduction="sum")
    return temperature**2 * total / (count(labels) if num_items is None else num_items)


class AttentionOutputs:
    """What the attention of each layer and loop adds in one forward, `[B, T, D]`, in the order of computation."""

    def __init__(self, model: PreTrainedModel):
        self.outputs: list[Tensor] = []
        model.register_forward_pre_hook(self.start)
        for module in model.modules():
            if isinstance(module, PLTAttention):
                module.register_forward_hook(self.note)

    def start(self, *_: Any) -> None:
        self.outputs = []  # checkpointing computes outputs again in the backward

    def note(self, module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> None:
        self.outputs.append(output[0])

    def take(self) -> list[Tensor]:
        taken, self.outputs = self.outputs, []
        return taken


def distance(seen: list[Tensor], taught: list[Tensor]) -> Tensor:
    """Mean squared distance, as a share of the teacher's mean square, averaged over layers and loops."""
    parts = [
        (one - other).float().square().mean() / other.float().square().mean()
        for one, other in zip(seen, taught, strict=True)
    ]
    return torch.stack(parts).mean()


def refuse_other_attention(model: PLTForCausalLM, teacher: PreTrainedModel) -> None:
    names = ("num_hidden_layers", "num_loops", "hidden_size")
    wanted, given = ([getattr(each.config, name, None) for name in names] for each in (model, teacher))
    if not isinstance(teacher, PLTForCausalLM) or given != wanted:
        raise ValueError(
            f"`--attention_weight` needs a teacher in this package's format with {', '.join(names)} of {wanted}, got "
            f"a {type(teacher).__name__} with {given}."
        )
