# SPDX-License-Identifier: Apache-2.0
"""The loss of earlier loops, next to that of the last.

B batch, T tokens, D hidden.
"""

from typing import Any

from torch import nn

from modeling_plt import PLTForCausalLM


def add_earlier_loops(model: PLTForCausalLM, weight: float) -> None:
    """From now on, in training, the model's loss is `last + weight * (sum of the losses of earlier loops)`.

    A loop's loss is that of its normed states `[B, T, D]`, read out through the coda and by the one head. It is
    computed inside the model's forward, where a sharded head is whole, and counts labels and `num_items_in_batch` as
    the last loop's does. Evaluation and what reads the decoder directly, as TRL's trainers do, see the last loop only.

    Raises:
        ValueError: the weight is negative, or there is no earlier loop.
    """
    refuse_weight(weight, model.config.num_loops)

    def ask_for_states(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        return (args, kwargs | {"output_loop_hidden_states": True}) if is_wanted(module, kwargs) else None

    def add_losses(module: nn.Module, args: Any, kwargs: dict[str, Any], outputs: Any) -> Any:
        if is_wanted(module, kwargs):
            for states in outputs.loop_hidden_states[:-1]:
                outputs.loss = outputs.loss + weight * loss_of(model, states, kwargs)
        return outputs

    model.register_forward_pre_hook(ask_for_states, with_kwargs=True)
    model.register_forward_hook(add_losses, with_kwargs=True)


def refuse_weight(weight: float, num_loops: int) -> None:
    if weight < 0:
        raise ValueError(f"`--earlier-loops-weight` must be at least 0, got {weight}.")
    if weight and num_loops == 1:
        raise ValueError("`--earlier-loops-weight` needs a model of at least 2 loops, got 1.")


def is_wanted(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a forward computes a loss to train on, to which something may be added."""
    return module.training and kwargs.get("labels") is not None


def loss_of(model: PLTForCausalLM, states: Any, kwargs: dict[str, Any]) -> Any:
    """The model's own loss, of the states of one loop."""
    return model.loss_function(
        logits=model.lm_head(states),
        labels=kwargs["labels"],
        vocab_size=model.config.vocab_size,
        num_items_in_batch=kwargs.get("num_items_in_batch"),
    )
