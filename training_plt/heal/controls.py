# SPDX-License-Identifier: Apache-2.0
"""Does a healed model need its loops? Its held-out loss without what they add."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from modeling_plt import PLTForCausalLM

CONTROLS_FILE = "controls.json"
WORDS = {
    "loop_0_alone": "loop 0 alone",
    "hidden_scale_0": "the state's scale at 0",
    "gate_1": "gates at 1, without the window",
}


def control_losses(trainer: Any, evaluation: dict[str, float]) -> dict[str, Any]:
    """Held-out losses in nats per token, of the model and without what later loops read; costs two evaluations.

    Args:
        trainer: that evaluates loops; all processes call this.
        evaluation: what it has logged of the model as it is.

    Returns:
        `loss`, `loop_0_alone`, `hidden_scale_0`, `gate_1`; and `loops`, what the evaluation said of them.
    """
    losses = {"loss": evaluation["eval_loss"], "loop_0_alone": evaluation["eval_loop_0_loss"]}
    for name, without in (("hidden_scale_0", without_state), ("gate_1", with_shared_only)):
        with without(trainer.model):
            losses[name] = loss_now(trainer)
    names = [name for name in evaluation if name.startswith("eval_loop_") or name.endswith("_scale")]
    return losses | {"loops": {name.removeprefix("eval_"): evaluation[name] for name in names}}


def loss_now(trainer: Any) -> float:
    """Without a log, and without what follows evaluations."""
    data = trainer.get_eval_dataloader()
    return trainer.evaluation_loop(data, "Control", prediction_loss_only=True).metrics["eval_loss"]


@contextmanager
def without_state(model: PLTForCausalLM) -> Iterator[None]:
    """Later loops start from the embedding alone."""
    decoder = model.model
    # a scale that is learned is changed inside of each forward: outside of it, a sharded one is another tensor
    scales = decoder if decoder.config.has_learned_scales else decoder.config
    kept: list[Any] = []

    def remove(*_: Any) -> None:
        kept.append(copy(scales.hidden_scale))
        set_scale(scales, 0.0)

    def restore(*_: Any) -> None:
        set_scale(scales, kept.pop())

    with ExitStack() as hooks:
        hooks.enter_context(decoder.register_forward_pre_hook(remove))
        hooks.enter_context(decoder.register_forward_hook(restore, always_call=True))
        yield


def copy(scale: Any) -> Any:
    return scale.detach().clone() if isinstance(scale, Tensor) else scale


@torch.no_grad()
def set_scale(scales: Any, value: Any) -> None:
    """A parameter keeps its place, a number is exchanged."""
    if isinstance(scales.hidden_scale, Tensor):
        scales.hidden_scale.copy_(torch.as_tensor(value))
    else:
        scales.hidden_scale = value


@contextmanager
def with_shared_only(model: PLTForCausalLM) -> Iterator[None]:
    """Later loops attend to the shared KV alone."""
    with ExitStack() as hooks:
        for layer_idx in model.config.looped_stage.layers:
            gate = model.model.layers[layer_idx].self_attn.plt_gate
            hooks.enter_context(gate.register_forward_hook(lambda *call: torch.ones_like(call[2])))
        yield
