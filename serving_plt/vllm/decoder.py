# SPDX-License-Identifier: Apache-2.0
"""The decoder: embeddings, a prelude, the layers that loop, a coda, and the norm (paper section 3).

A step in which every request decodes takes all loops in one pass. Any other takes loop after loop over all tokens of
the step; of later loops the rows alone on which something still depends, if vLLM was told so (`pruning.py`).

T tokens of all requests in a step, n requests, k rows of the step, L loops, D hidden.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from .carry import Carry
from .checks import check_step
from .configs import ServedConfig
from .layer import PLTDecoderLayer
from .loops import AllLoops, OneLoop, compiled
from .lora import LoopByLoop, all_loops, split
from .metrics import Metrics
from .pruning import Kept, Part, parts_of, select


class PLTModel(nn.Module):
    """The decoder without its head."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.config = config
        quantized: dict[str, Any] = {"quant_config": vllm_config.quant_config}
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens", **quantized
        )
        self.layers = nn.ModuleList(
            PLTDecoderLayer(config, vllm_config, f"{prefix}.layers.{layer_idx}", layer_idx)
            for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.has_adapter:
            sizes = 2 * config.hidden_size, config.hidden_size
            self.adapter = ReplicatedLinear(*sizes, bias=False, prefix=f"{prefix}.adapter", **quantized)
        if config.has_learned_scales:
            self.embedding_scale: nn.Parameter | float = nn.Parameter(torch.ones(1), requires_grad=False)
            self.hidden_scale: nn.Parameter | float = nn.Parameter(torch.ones(1), requires_grad=False)
        else:
            assert config.hidden_scale is not None  # the config has set it
            self.embedding_scale, self.hidden_scale = config.embedding_scale, config.hidden_scale
        self.carry = Carry(config, vllm_config, prefix) if config.has_carry else None
        self.max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        # with LoRA unknown until vLLM has put in its layers
        self.adapted: list[LoopByLoop] | None = [] if vllm_config.lora_config is None else None
        self.metrics = Metrics(config)
        self.build_passes(vllm_config)

    def build_passes(self, vllm_config: VllmConfig) -> None:
        """Make what vLLM compiles: prelude, coda, each loop alone, in parts if pruned, and all loops together."""
        config, stages, core = self.config, self.config.stages, self.config.looped_stage

        def one_loop(tag: str, layers: range, loop_idx: int = 0) -> nn.Module:
            run = partial(self.run_layers, layers=layers, loops=range(loop_idx, loop_idx + 1))
            return compiled(OneLoop, tag, vllm_config, run)

        self.prelude = one_loop("prelude", stages[0].layers) if stages[0] != core else None
        self.parts = [parts_of(config, vllm_config, loop_idx) for loop_idx in core.loops]
        # of `OneLoop`, which the type of a `ModuleList` cannot say
        self.in_turn: Any = nn.ModuleList(
            nn.ModuleList(one_loop(f"loop_{loop_idx}_{part.layers.start}", part.layers, loop_idx) for part in parts)
            for loop_idx, parts in enumerate(self.parts)
        )
        self.together: nn.Module | None = None
        if config.goes_together:
            self.together = compiled(AllLoops, "together", vllm_config, self.run_together)
        self.coda = one_loop("coda", stages[-1].layers) if config.has_coda else None

    def forward(self, inputs_embeds: Tensor, positions: Tensor) -> Tensor:
        """Embeddings `[T, D]`, positions `[T]` -> output `[T, D]`: the last loop's normed states, or the coda's."""
        check_step()
        start = inputs_embeds
        if self.config.embedding_multiplier != 1:
            start = self.config.embedding_multiplier * start
        if self.prelude is not None:
            start = self.prelude(start, positions)
        # chosen here, outside of what vLLM compiles
        if self.together is not None and self.carry is not None and self.carry.is_decoding:
            of_loops = self.run_at_once(start, positions)
            self.carry.write(of_loops[:-1])
            states = of_loops[-1]
        else:
            states = self.run_in_turn(start, positions)
            self.measure_together(start, positions)
        return states if self.coda is None else self.norm(self.coda(states, positions))

    def run_at_once(self, start: Tensor, positions: Tensor) -> Tensor:
        """All loops in one pass: what loops start from `[T, D]`, positions `[T]` -> states `[L, T, D]`."""
        assert self.together is not None and self.carry is not None  # the callers have looked
        assert self.adapted is not None  # vLLM has called `split_adapters` before it runs a step
        with all_loops(self.adapted):
            of_loops: Tensor = self.together(start, positions, self.carry.read(start))
        return of_loops

    def split_adapters(self) -> None:
        """Let layers find the adapters of their rows in a pass of all loops, once vLLM has put its layers in."""
        loops = len(self.config.looped_stage.loops)
        self.adapted = split(self.layers, loops)
        if self.config.has_adapter:
            self.adapted += split(self.adapter, loops - (self.config.initial_state == "none"))

    def run_layers(self, hidden_states: Tensor, positions: Tensor, layers: range, loops: range) -> Tensor:
        """Run some layers, once: `[R * T, D]` -> the same."""
        for layer_idx in layers:
            hidden_states = self.layers[layer_idx](hidden_states, positions, loops)
        return hidden_states

    def run_together(self, start: Tensor, positions: Tensor, carried: Tensor) -> Tensor:
        """All loops in one pass, see `AllLoops.forward`: what each hands on, `[L, T, D]`."""
        stage, first = self.config.looped_stage, self.first_state(start)
        before = carried if first is None else torch.cat((first[None], carried))
        inputs = self.read_both(start, before).flatten(0, 1)
        if first is None:
            inputs = torch.cat((start, inputs))
        states = self.run_layers(inputs, positions.repeat(len(stage.loops)), stage.layers, stage.loops)
        return self.hand_on(states.unflatten(0, (len(stage.loops), -1)), stage.loops)

    def run_in_turn(self, start: Tensor, positions: Tensor) -> Tensor:
        """Loop after loop over the tokens of a step, which keeps the carry.

        Start `[T, D]`, positions `[T]` -> what the last loop hands on `[T, D]`, with zeros where it was pruned.
        """
        carry, first = self.carry, self.first_state(start)
        carried = places = None
        if carry is not None and carry.has_requests:
            carried, places = carry.of_requests(), carry.places()
        states, rows, of_places = start, None, []
        if first is not None:
            states = self.read_both(start, first)
        *earlier, last = self.config.looped_stage.loops
        for loop_idx in (*earlier, last):
            if loop_idx > 0:
                states, rows = self.enter(loop_idx, start, states, rows, carried)
            states, rows = self.run_loop(loop_idx, states, rows, positions)
            if places is not None and loop_idx in earlier:
                of_places.append(select(states, places[0], rows))
        if carry is not None and places is not None:
            carry.keep(torch.stack(of_places, dim=1), places[1])
        return states if rows is None else torch.zeros_like(start).index_copy_(0, rows, states)

    def enter(
        self, loop_idx: int, start: Tensor, states: Tensor, among: Tensor | None, carried: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The input of a later loop, and its rows: `[k, D]`, `[k]`, or None for all.

        Args:
            states: what the loop before hands on, of the rows `among`.
            carried: the carries of the requests `[n, L - 1, D]`, if there are any.
        """
        kept = self.kept(loop_idx, self.parts[loop_idx][0])
        rows = None if kept is None else kept.rows
        if self.carry is None:
            return self.read_both(select(start, rows, None), select(states, rows, among)), rows
        before = states.roll(1, dims=0) if kept is None else select(states, kept.rows - 1, among)
        if carried is not None:
            of_loop = carried[:, loop_idx - 1]
            firsts = self.carry.ends()[:-1] if kept is None else kept.firsts
            before[firsts] = of_loop if kept is None else of_loop[kept.requests]
        return self.read_both(select(start, rows, None), before), rows

    def run_loop(
        self, loop_idx: int, states: Tensor, rows: Tensor | None, positions: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run one loop, in which a part may run fewer rows than the part before -> what it hands on, and its rows."""
        for part, run in zip(self.parts[loop_idx], self.in_turn[loop_idx], strict=True):
            kept = self.kept(loop_idx, part)
            among, rows = rows, None if kept is None else kept.rows
            if rows is not None:
                self.metrics.count_pruned((len(positions) - len(rows)) * len(part.layers))
            states = run(select(states, rows, among), select(positions, rows, None))
        return self.hand_on(states[None], range(loop_idx, loop_idx + 1))[0], rows

    def kept(self, loop_idx: int, part: Part) -> Kept | None:
        """The rows that a part runs in this step; None: all tokens."""
        if part.reach is None:
            return None
        attention: Any = self.layers[part.layers.start].self_attn
        metadata = (get_forward_context().attn_metadata or {}).get(attention.own_attn[str(loop_idx)].layer_name)
        return None if metadata is None else metadata.kept

    def first_state(self, start: Tensor) -> Tensor | None:
        """What loop 0 reads beside its start `[T, D]`, if anything."""
        if self.config.initial_state == "none":
            return None
        return start if self.config.initial_state == "prelude" else torch.zeros_like(start)

    def read_both(self, start: Tensor, before: Tensor) -> Tensor:
        """Start `[T, D]`, states `[..., T, D]` as one input: `a * E + b * H` (paper), or a matrix of both (Huginn)."""
        if self.config.has_adapter:
            return self.adapter(torch.cat((before, start.expand_as(before)), dim=-1))[0]
        return self.embedding_scale * start + self.hidden_scale * before

    def hand_on(self, states: Tensor, loops: range) -> Tensor:
        """What loops `[R, T, D]` hand on: to the next loop, and the last one to the coda or as the output."""
        *earlier, last = self.config.looped_stage.loops
        norms_last = self.coda is None or self.config.coda_norm
        normed = [norms_last if loop_idx == last else self.config.loop_norm for loop_idx in loops]
        if all(normed):
            return self.norm(states)
        if not any(normed):
            return states
        parts = (states[:-1], self.norm(states[-1:])) if norms_last else (self.norm(states[:-1]), states[-1:])
        return torch.cat(parts)

    def measure_together(self, start: Tensor, positions: Tensor) -> None:
        """Run the largest step that decodes while vLLM measures memory, by a step of many tokens and no request.

        Otherwise the pass of all loops would be missing from the measurement. It is also the first one that the
        compiler sees, which takes a dimension of 1 for a constant: so there are two rows at least. vLLM has told which
        adapter each token of this step has: where there are adapters, all of them run.
        """
        if self.together is not None and get_forward_context().attn_metadata is None:
            few = start if self.adapted else start[: max(2, self.max_num_seqs)]
            self.run_at_once(few, positions[: len(few)])
