# SPDX-License-Identifier: Apache-2.0
"""What each loop does, measured in the forwards of an evaluation.

B batch, T tokens, D hidden, L loops, H heads.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from modeling_plt import PLTForCausalLM

from ..data.packing import NO_LABEL

SCALES = ("embedding_scale", "hidden_scale")


class LoopReadouts:
    """The losses of earlier loops and the gates of later ones, of each batch of an evaluation.

    The layers run once, as without it; the head reads the states of the earlier loops too. It reads them inside of the
    decoder's forward, where sharded weights are whole, and which is called however a trainer computes its loss.
    """

    def __init__(self, model: PLTForCausalLM):
        self.model = model
        stage = model.config.looped_stage
        self.labels: Tensor | None = None  # of the batch that is evaluated; None outside of evaluation
        self.gates: list[list[Tensor]] = [[] for _ in stage.layers]
        self.batch = torch.zeros(0)
        later = stage.loops[1:]
        self.names = [f"loop_{loop_idx - 1}_loss" for loop_idx in later]
        self.names += [f"loop_{loop_idx}_gate" for loop_idx in later] if model.config.has_gate else []
        self.names += SCALES if model.config.has_learned_scales else []
        model.model.register_forward_pre_hook(self.ask_for_states, with_kwargs=True)
        model.model.register_forward_hook(self.read)
        if model.config.has_gate:
            for layer_idx, calls in zip(stage.layers, self.gates, strict=True):
                gate = model.model.layers[layer_idx].self_attn.plt_gate
                gate.register_forward_hook(partial(self.note_gate, calls))

    def ask_for_states(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        for calls in self.gates:
            calls.clear()
        return None if self.labels is None else (args, kwargs | {"output_loop_hidden_states": True})

    def note_gate(self, calls: list[Tensor], module: nn.Module, args: Any, gate: Tensor) -> None:
        if self.labels is not None:
            calls.append(gate)  # [B, R, T, H] of R later loops

    def read(self, module: nn.Module, args: Any, outputs: Any) -> None:
        """Keep the values that `names` names, of one batch."""
        if self.labels is None:
            return
        values = [self.loss_of(states) for states in outputs.loop_hidden_states[:-1]]
        if self.model.config.has_gate:
            by_layer = [torch.cat(calls, dim=1).mean(dim=(0, 2, 3)) for calls in self.gates]
            values += torch.stack(by_layer).mean(dim=0).unbind()
        if self.model.config.has_learned_scales:
            values += [getattr(module, name).squeeze() for name in SCALES]
        self.batch = torch.stack([value.detach().float() for value in values])

    def loss_of(self, states: Tensor) -> Tensor:
        """The model's loss, of the states `[B, T, D]` of one loop."""
        return self.model.loss_function(
            logits=self.model.lm_head(states), labels=self.labels, vocab_size=self.model.config.vocab_size
        )


class EvaluatesLoops(Trainer):
    """A Trainer, which goes before others: evaluations also tell what each loop of the PLT does, `LoopReadouts.names`.

    All losses, `eval_loss` too, are means over the labels. Trainer's own is one over entries of the means of batches,
    which depends on the size of the batches. Where processes share the entries unevenly, repeated ones that fill up a
    batch are in its mean, but do not add to its weight.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        modules = self.model.modules()  # type: ignore[union-attr]  # it has been given one
        model = next(module for module in modules if isinstance(module, PLTForCausalLM))
        self.readouts = LoopReadouts(model) if model.config.num_loops > 1 else None
        self.sums: list[Tensor] = []  # of each batch: labels, loss times labels, and each readout times labels

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As Trainer's."""
        labels = self._prepare_inputs(inputs)["labels"]
        if self.readouts is not None:
            self.readouts.labels = labels
        try:
            result = super().prediction_step(model, inputs, *args, **kwargs)
        finally:
            if self.readouts is not None:
                self.readouts.labels = None
        loss: Any = result[0]
        values = loss.reshape(1).float()
        if self.readouts is not None:
            values = torch.cat((values, self.readouts.batch))
        # a row for each entry, so that those that fill up the last batch are left out as Trainer does
        counts = (labels[:, 1:] != NO_LABEL).sum(dim=1, keepdim=True).float()
        counts = pad(counts, (0, 0, 0, self.args.eval_batch_size - len(counts)))
        # the mean over no labels is no number, and counts for nothing
        totals = (counts * values).where(counts > 0, 0)
        self.sums.append(self.gather_function(torch.cat((counts, totals), dim=1)).sum(dim=0))
        return result

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As Trainer's, with more metrics.

        Raises:
            ValueError: nothing that is evaluated has a label.
        """
        self.sums = []
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        num_labels, *sums = torch.stack(self.sums).double().sum(dim=0).tolist()
        if num_labels == 0:
            raise ValueError("What is evaluated must have labels, got none: nothing in it is to be predicted.")
        names = ["loss", *(self.readouts.names if self.readouts is not None else [])]
        means = (total / num_labels for total in sums)
        found = zip((f"{metric_key_prefix}_{name}" for name in names), means, strict=True)
        return output._replace(metrics=(output.metrics or {}) | dict(found))
