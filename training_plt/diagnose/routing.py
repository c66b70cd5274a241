# SPDX-License-Identifier: Apache-2.0
"""Which experts the tokens of a text are sent to: how alike loops choose, and how evenly.

L loops, M sparse layers of the loop, T tokens, E experts, k of them per token.
"""

import torch
from torch import Tensor

from configuration_plt import PLTConfig


class Routing:
    """Counts of choices, in which a token counts once for each loop."""

    def __init__(self, config: PLTConfig):
        stage = config.looped_stage
        self.loops, self.top_k = stage.loops, config.num_experts_per_tok or 0
        self.layers = [layer_idx for layer_idx in stage.layers if config.is_sparse(layer_idx)]
        self.num_before = sum(config.is_sparse(layer_idx) for layer_idx in range(stage.layers.start))
        self.num_tokens = 0
        self.common = torch.zeros(len(self.layers), len(self.loops), dtype=torch.long)
        self.chosen = torch.zeros(len(self.layers), config.num_experts, dtype=torch.long)

    def add(self, router_logits: tuple[Tensor, ...]) -> None:
        """The router logits of a text `[T, E]`, as the model gives them: loop after loop in each stage."""
        of_stage = router_logits[self.num_before :][: len(self.loops) * len(self.layers)]
        chosen = torch.stack([self.is_chosen(logits) for logits in of_stage]).cpu()  # [L * M, T, E]
        chosen = chosen.unflatten(0, (len(self.loops), -1))
        self.num_tokens += chosen.shape[2]
        self.common += (chosen & chosen[:1]).sum(dim=(2, 3)).T
        self.chosen += chosen.sum(dim=(0, 2))

    def is_chosen(self, logits: Tensor) -> Tensor:
        """`[T, E]`, true for the k experts of each token."""
        top = logits.topk(self.top_k, dim=-1).indices
        return torch.zeros_like(logits, dtype=torch.bool).scatter(1, top, True)

    def results(self) -> dict[str, list]:
        """See `diagnose`."""
        if not self.layers:
            return {"expert_overlap": [], "expert_load": []}
        overlap = self.common / (self.num_tokens * self.top_k)
        load = self.chosen / (self.num_tokens * len(self.loops) * self.top_k)
        return {
            "expert_overlap": [[None, *of_layer[1:]] for of_layer in overlap.tolist()],
            "expert_load": load.tolist(),
        }
