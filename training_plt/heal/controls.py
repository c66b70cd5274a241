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
    """Later loops start from the embedding alone, and zeros for a state."""
    decoder: Any = model.model
    state_before = decoder.state_before

    def no_state(loop_idx: int, *given: Any) -> Tensor | None:
        state: Tensor | None = state_before(loop_idx, *given)
        return state if state is None or loop_idx == 0 else torch.zeros_like(state)

    decoder.state_before = no_state
    try:
        yield
    finally:
        del decoder.state_before


@contextmanager
def with_shared_only(model: PLTForCausalLM) -> Iterator[None]:
    """Later loops attend to the shared KV alone."""
    with ExitStack() as hooks:
        for layer_idx in model.config.looped_stage.layers:
            gate = model.model.layers[layer_idx].self_attn.plt_gate
            hooks.enter_context(gate.register_forward_hook(lambda *call: torch.ones_like(call[2])))
        yield
