# SPDX-License-Identifier: Apache-2.0
"""What each loop adds on a text: the diagnostics of LoopCoder-v2 (arXiv 2606.18023), by which a loop count is chosen.

L loops, N looped layers, M of them with experts, T tokens of a sequence, D hidden, H query heads, V vocabulary.

`H[r]` are the normed states of loop r, which the head reads, also in models whose later loops read them without the
norm (`loop_norm=False`).
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configuration_plt import PLTConfig
from modeling_plt import PLTForCausalLM

from .routing import Routing

MEANS = ("step_size", "update_cosine", "offset_cost", "refinement_gain", "loss")


@torch.inference_mode()
def diagnose(model: PLTForCausalLM, sequences: Iterable[Tensor]) -> dict[str, list]:
    """The diagnostics of a model on sequences of token ids `[T]`, each read on its own, from its first token on.

    Every list has L entries. Entry r belongs to loop r, and is None where nothing is defined: there is no loop before
    it, or no gate. Lengths are those of vectors of D numbers; entropies and losses are in nats.

    Returns:
        step_size: mean of `||H[r] - H[r-1]||` over tokens, from loop 1 on.
        update_cosine: mean cosine between `H[r] - H[r-1]` and `H[r-1] - H[r-2]`, from loop 2 on, over the tokens of a
            sequence but its first r - 1, or r with an `initial_state` of zeros. There a shifted loop has the input of
            the loop before, and changes nothing.
        effective_rank: exp of the entropy of the singular values of `H[r]`, all tokens by D, divided by their sum.
        offset_cost: mean of `||H[r-1][i] - H[r-1][i-1]||` over the tokens i of a sequence but its first, from loop 1
            on: how far the shift moves what loop r reads. A model without the shift has it too, as what it would cost.
        refinement_gain: mean KL divergence of a loop's prediction from that of the loop before, from loop 1 on.
        mean_gate: N such lists, one per looped layer; means over tokens and heads, from loop 1 on.
        loss: mean cross entropy of the next token, over the tokens of a sequence but its first.
        expert_overlap: M such lists, one per looped layer with experts; the share of a token's experts in loop 0 that
            it is sent to in loop r too, from loop 1 on. Loops that choose at random have k / E of them in common.
        expert_load: of each of these layers the share of all choices that fall on each of its E experts.
    """
    totals = Totals(model.config, model.device)
    for input_ids in sequences:
        totals.add(model, input_ids.to(model.device))
    return totals.results()


def choose_loops(effective_rank: list[float]) -> int:
    """The loop count by LoopCoder-v2's rule, to add a loop only while effective rank still rises."""
    for loop_idx in range(1, len(effective_rank)):
        if effective_rank[loop_idx] <= effective_rank[loop_idx - 1]:
            return loop_idx
    return len(effective_rank)


class LoopMeans:
    """A mean for each loop, of values that come in parts."""

    def __init__(self, num_loops: int):
        self.sums = [0.0] * num_loops
        self.counts = [0] * num_loops

    def add(self, loop_idx: int, values: Tensor) -> None:
        self.sums[loop_idx] += values.double().sum().item()
        self.counts[loop_idx] += values.numel()

    def results(self) -> list[float | None]:
        """None for a loop that has had no value."""
        return [total / count if count else None for total, count in zip(self.sums, self.counts, strict=True)]


class Totals:
    """What is kept of all sequences: sums in float64, so that no more than one sequence's states are held."""

    def __init__(self, config: PLTConfig, device: torch.device):
        self.num_tokens = 0
        self.starts_from_zeros = config.initial_state == "zeros"  # as a later loop does at the first token
        stage = config.looped_stage
        self.means = {name: LoopMeans(len(stage.loops)) for name in MEANS}
        self.gates = [LoopMeans(len(stage.loops)) for _ in stage.layers]
        size = (len(stage.loops), config.hidden_size, config.hidden_size)
        self.routing = Routing(config)
        self.gram = torch.zeros(size, dtype=torch.float64, device=device)

    def add(self, model: PLTForCausalLM, input_ids: Tensor) -> None:
        """A sequence of token ids `[T]`."""
        self.num_tokens += len(input_ids)
        wanted = {"output_loop_hidden_states": True, "output_router_logits": bool(self.routing.layers)}
        with recorded_gates(model) as gates:
            outputs = model.model(input_ids[None], use_cache=False, **wanted)
        if self.routing.layers:
            self.routing.add(outputs.router_logits)
        self.add_states(torch.cat(outputs.loop_hidden_states).double())
        self.add_predictions(model.lm_head, outputs.loop_hidden_states, input_ids)
        for means, calls in zip(self.gates, gates, strict=True):
            # later loops ran in calls of their own, or all in one
            for loop_idx, gate in enumerate((gate for call in calls for gate in call.unbind(1)), start=1):
                means.add(loop_idx, gate)

    def add_states(self, states: Tensor) -> None:
        """The normed states `[L, T, D]` of all loops."""
        self.gram += states.mT @ states
        updates = states.diff(dim=0)  # [L - 1, T, D]
        for loop_idx in range(1, len(states)):
            self.means["step_size"].add(loop_idx, updates[loop_idx - 1].norm(dim=-1))
            self.means["offset_cost"].add(loop_idx, states[loop_idx - 1].diff(dim=0).norm(dim=-1))
        for loop_idx in range(2, len(states)):
            cosine = F.cosine_similarity(updates[loop_idx - 1], updates[loop_idx - 2], dim=-1)
            self.means["update_cosine"].add(loop_idx, cosine[loop_idx - 1 + self.starts_from_zeros :])

    def add_predictions(self, head: nn.Module, loop_states: tuple[Tensor, ...], input_ids: Tensor) -> None:
        """The normed states `[1, T, D]` of each loop, which the head turns into predictions of `input_ids` `[T]`."""
        before = None
        for loop_idx, states in enumerate(loop_states):  # one after another: predictions are the largest tensors
            logits = head(states[0])
            predicted = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
            self.means["loss"].add(loop_idx, F.nll_loss(predicted[:-1], input_ids[1:], reduction="none"))
            if before is not None:
                divergence = F.kl_div(before, predicted, reduction="none", log_target=True).sum(dim=-1)
                self.means["refinement_gain"].add(loop_idx, divergence)
            before = predicted

    def results(self) -> dict[str, list]:
        """See `diagnose`."""
        ranks = [effective_rank(gram, self.num_tokens) for gram in self.gram]
        gates = [means.results() for means in self.gates]
        return {name: means.results() for name, means in self.means.items()} | {
            "effective_rank": ranks,
            "mean_gate": gates,
            **self.routing.results(),
        }


def effective_rank(gram: Tensor, num_tokens: int) -> float:
    """Of states `[tokens, D]`, of which only the Gram matrix `[D, D]` is kept: its eigenvalues are their squares."""
    # fewer tokens than D leave eigenvalues of zero, which come out as rounding errors
    singular_values = torch.linalg.eigvalsh(gram)[-num_tokens:].clamp(min=0).sqrt()
    return torch.special.entr(singular_values / singular_values.sum()).sum().exp().item()


@contextmanager
def recorded_gates(model: PLTForCausalLM) -> Iterator[list[list[Tensor]]]:
    """For each looped layer the gates `[B, R, T, H]` of each call with R later loops; none if there are no gates."""
    layers = [model.model.layers[layer_idx] for layer_idx in model.config.looped_stage.layers]
    gates: list[list[Tensor]] = [[] for _ in layers]
    with ExitStack() as hooks:
        for layer, calls in zip(layers, gates, strict=True):
            if layer.self_attn.plt_gate is not None:
                hook = layer.self_attn.plt_gate.register_forward_hook(lambda *call, calls=calls: calls.append(call[2]))
                hooks.enter_context(hook)
        yield gates
