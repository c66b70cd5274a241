# SPDX-License-Identifier: Apache-2.0
"""Attention of a PLT: shared KV, own window, and the gate between them.

B batch, R loops in the pass, T new tokens, of which the last P enter and the last Q leave, S keys, H query heads, Hkv
KV heads, Dh head_dim, D hidden. R or T is 1, see `Pass`.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half

from .blocks_plt import BlockMask, fold_blocks, unfold_blocks
from .configuration_plt import PLTConfig
from .masks_plt import cut_mask, is_dense, mask_of_last
from .pads_plt import concatenate, last_columns, tail
from .passes_plt import Pass

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate


class PLTGate(nn.Module):
    """Weight of the shared-KV attention, a number in (0, 1) per head and token; it starts at 0.5 (LoopCoder-v2).

    Plain parameters instead of an `nn.Linear`, so that adapters and quantizers do not take it for a projection.
    """

    def __init__(self, config: PLTConfig):
        super().__init__()
        self.reads_query = config.gate_input == "query"
        assert config.head_dim is not None  # the config has set it
        input_size = config.head_dim if self.reads_query else config.hidden_size
        self.weight = nn.Parameter(torch.zeros(config.num_attention_heads, input_size))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))
        if not self.reads_query:
            self.gate_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Un-normed layer input `[B, R, Q, D]` and rotated query `[B, R, H, Q, Dh]` -> gate `[B, R, Q, H]`.

        At least float32, in which a gate near 1 still differs from 1 and has a gradient.
        """
        weight, bias = own_heads(self.weight), own_heads(self.bias)
        if self.reads_query:
            logits = (query * weight[:, None]).sum(dim=-1).transpose(-1, -2) + bias
        else:
            logits = nn.functional.linear(read_by_all_heads(self.gate_norm(layer_input), self.weight), weight, bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


class NormOfAllHeads(LlamaRMSNorm):
    """RMSNorm of a position over all its heads together (OLMoE)."""

    def forward(self, states: Tensor) -> Tensor:
        """`[B, R, heads, P, Dh]` of any number of heads."""
        by_position = states.transpose(2, 3)
        normed: Tensor = super().forward(by_position.flatten(3))
        return normed.view(by_position.shape).transpose(2, 3)


class FoldedQueries(nn.Module):
    """Stands in for the attention module when the query heads that share a KV head are passed as positions."""

    # UNTIL transformers 5.24, whose `sdpa` does so itself; `eager` and compiled masked steps go on to need it

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: PLTConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx


class PLTAttention(nn.Module):
    """Attention of one decoder layer; every loop calls it with the same weights (paper section 3.2)."""

    def __init__(self, config: PLTConfig, layer_idx: int):
        super().__init__()
        assert config.head_dim is not None and config.num_key_value_heads is not None  # the config has set them
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True

        query_size, key_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=bool(config.attention_output_bias))
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm == "head":
            self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        elif config.qk_norm == "whole":
            self.q_norm = NormOfAllHeads(query_size, eps=config.rms_norm_eps)
            self.k_norm = NormOfAllHeads(key_size, eps=config.rms_norm_eps)
        self.plt_gate: PLTGate | Any = PLTGate(config) if layer_idx in config.gated_layers else None
        self.folded_queries = FoldedQueries(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        layer_input: Tensor,
        shared_key: Tensor | Any,  # `Any` for None, which only loop 0 is given
        shared_value: Tensor | Any,
        run: Pass,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Attend in one pass.

        Args:
            hidden_states: the normed layer input `[B, R * P, D]`.
            layer_input: the same before its norm; the gate reads it.
            shared_key, shared_value: loop 0's `[B, 1, Hkv, S, Dh]`, or None if loop 0 is in this pass. In a vanilla
                loop nothing is shared: they are replaced by the pass's own.
            run: the pass; P and Q are less than T where positions have been pruned.
            kwargs: for the kernel.

        Returns:
            Output `[B, R * Q, D]`; attention weights `[B, H, Q, S]` of the last loop in the pass over the shared KV,
            in the given order, or None if the implementation returns none; shared key and value.
        """
        num_loops, num_queries = len(run.loops), run.num_queries(self.layer_idx)
        # the loops are an axis from here to `o_proj`; of pruned positions, only keys and values are computed
        inputs = tail(hidden_states, num_loops * num_queries).contiguous()  # adapters may take a view of it
        query = self.split_heads(self.q_proj(inputs), num_loops)
        query = rotate(self.q_norm(query), run.position_embeddings)
        if run.full_loops or run.windowed_loops:  # later loops that see none of their own keys need queries alone
            key = self.split_heads(self.k_proj(hidden_states), num_loops)
            key = rotate(self.k_norm(key), run.position_embeddings)
            value = self.split_heads(self.v_proj(hidden_states), num_loops)

        # shared KV: loop 0 sees all that came before, and later loops see the same, unless all have their own
        if run.full_loops:
            shared_key, shared_value = self.seen_by(run.full_loops, key, value, run)
        output, weights = self.attend_all(query, shared_key, shared_value, run, **kwargs)
        if run.windowed_loops:
            # loop 0 holds every earlier token, so later loops keep no more than a window of their own keys and values
            first = num_loops - len(run.windowed_loops)
            own_key, own_value = self.seen_by(run.windowed_loops, key, value, run)
            own = self.attend_window(query[:, first:], own_key, own_value, run.tokens.window_mask, **kwargs)
            layer_input = tail(layer_input, num_loops * num_queries).unflatten(1, (num_loops, -1))
            # computed in float32, in which a gate near 1 has a gradient
            gate = self.plt_gate(layer_input[:, first:], query[:, first:]).unsqueeze(-1)
            mixed = torch.lerp(own, output[:, first:], gate.to(own.dtype))
            output = concatenate((output[:, :first], mixed), dim=1) if first else mixed
        elif self.plt_gate is not None and self.training:
            output = output + zero_of(self.plt_gate).to(output.dtype)
        return self.o_proj(output.flatten(3).flatten(1, 2)), weights, shared_key, shared_value

    def seen_by(self, loops: range, key: Tensor, value: Tensor, run: Pass) -> tuple[Tensor, Tensor]:
        """Own keys and values of some loops of the pass `[B, R, Hkv, P, Dh]`, after those in the cache."""
        first, tokens = loops.start - run.loops.start, run.tokens
        key, value = key.narrow(1, first, len(loops)), value.narrow(1, first, len(loops))
        if run.past_key_values is None:
            return key, value
        return run.past_key_values.update(key, value, self.layer_idx, loops, tokens.num_tokens, tokens.pads)

    def attend_all(
        self, query: Tensor, key: Tensor, value: Tensor, run: Pass, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Let all loops attend to everything before a token, `[B, R or 1, Hkv, S, Dh]`; other shapes as in `attend`.

        Recorded weights are in the given order.
        """
        tokens, num_queries = run.tokens, query.shape[3]
        mask = mask_of_last(tokens.full_mask, num_queries, tokens.num_tokens, key, self.config)
        output, weights = self.attend(query, key, value, mask, **kwargs)
        if weights is not None and tokens.pads is not None and run.has_last_loop:
            weights = tokens.pads.give_back_weights(weights)
            is_all = num_queries == tokens.num_tokens and len(run.loops) == 1
            if is_all and self.config._attn_implementation == "eager":
                # as with states, the output is computed from the recorded weights, so that these have a gradient
                output = weigh(tokens.pads.put_weights_first(weights), value)
        return output, weights

    def split_heads(self, states: Tensor, num_loops: int) -> Tensor:
        """`[B, R * P, heads * Dh]` -> `[B, R, heads, P, Dh]`."""
        return states.unflatten(1, (num_loops, -1)).unflatten(-1, (-1, self.head_dim)).transpose(2, 3)

    def attend_window(self, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Tensor:
        """Let later loops attend to windows of their own keys, `[B, R, Hkv, n, Dh]`; other shapes as in `attend`."""
        batch_size, num_queries = query.shape[0], query.shape[3]
        num_visible = self.config.sliding_window - 1 + num_queries
        key, value = last_columns(key, num_visible), last_columns(value, num_visible)
        if isinstance(mask, BlockMask):
            output, _ = self.attend(*fold_blocks(query, key, value, mask), **kwargs)
            return unfold_blocks(output, batch_size, num_queries)
        # the cache has already cut the keys of a single position to its window
        sliding_window = self.config.sliding_window if num_queries > 1 else None
        return self.attend(query, key, value, mask, sliding_window=sliding_window, **kwargs)[0]

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Let R loops attend to keys of their own, or all to those of one loop.

        `[B, R, H, Q, Dh]` on `[B, R or 1, Hkv, n, Dh]` -> `[B, R, Q, H, Dh]`, weights of the last loop `[B, H, Q, n]`.
        """
        num_loops, num_heads = query.shape[1:3]
        own = key.shape[1]
        # loops that share keys are further query heads of each KV head, so that its keys are read once
        query = query.unflatten(1, (own, -1)).transpose(2, 3).flatten(1, 3)
        output, weights = self.run_kernel(query, key.flatten(1, 2), value.flatten(1, 2), mask, **kwargs)
        if num_loops == 1:
            return output.unsqueeze(1), weights
        output = output.unflatten(2, (own, num_heads, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return output, None if weights is None else weights.unflatten(1, (own, num_heads, -1))[:, -1, :, -1]

    def run_kernel(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, sliding_window: int | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the kernel that `config._attn_implementation` names in transformers' registry.

        Queries `[B, heads, Q, Dh]` on keys `[B, KV heads, n, Dh]` -> `[B, Q, heads, Dh]`, weights `[B, heads, Q, n]`.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mask = cut_mask(mask, query.shape[2], key.shape[2])
        kwargs |= {"dropout": self.config.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        if query.shape[2] > 1 or not (mask is None or is_dense(mask)):
            return attention(self, query, key, value, mask, sliding_window=sliding_window, **kwargs)

        # one position sees the same keys in all heads of a KV head: as positions of it, they need no expanded keys
        queries = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
        output, weights = attention(self.folded_queries, queries, key, value, mask, is_causal=False, **kwargs)
        output = output.transpose(1, 2).flatten(1, 2).unsqueeze(1)
        return output, None if weights is None else weights.flatten(1, 2).unsqueeze(2)


def rotate(states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[B, R, heads, P, Dh]` at the last P positions; a single one serves all R loops."""
    cos, sin = (tail(embedding, states.shape[3], dim=3) for embedding in position_embeddings)
    return states * cos + rotate_half(states) * sin


def weigh(weights: Tensor, value: Tensor) -> Tensor:
    """Attention weights `[B, H, Q, n]` of a loop on values `[B, 1, Hkv, n, Dh]` -> `[B, 1, Q, H, Dh]`."""
    by_head = weights.unflatten(1, (value.shape[2], -1)) @ value.transpose(1, 2)
    return by_head.flatten(1, 2).transpose(1, 2).unsqueeze(1)


def zero_of(module: nn.Module) -> Tensor:
    """0, with a gradient of 0 for each parameter of a module that has nothing else to do in a loop.

    Sharded training reduces the gradients of a layer together, and fails where a loop has none for some of them.
    """
    total: Any = sum(own_heads(parameter).sum() for parameter in module.parameters())
    return 0 * total


# Parameters that are split by heads over several processes (tensor parallelism), where they are no `nn.Linear`.


def is_split(parameter: Tensor) -> "TypeGuard[DTensor]":
    return torch.distributed.is_available() and isinstance(parameter, DTensor)


def own_heads(parameter: Tensor) -> Tensor:
    """The part of a parameter `[H, ...]` that this process holds."""
    return parameter.to_local() if is_split(parameter) else parameter


def read_by_all_heads(states: Tensor, parameter: Tensor) -> Tensor:
    """States that each process reads for its own heads of a parameter: their gradients are summed over processes."""
    if not is_split(parameter):
        return states
    everywhere = DTensor.from_local(states, parameter.device_mesh, [Replicate()], run_check=False)
    return everywhere.to_local(grad_placements=[Partial()])
