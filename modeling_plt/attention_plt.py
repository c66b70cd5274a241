# SPDX-License-Identifier: Apache-2.0
"""Attention of a PLT block: shared KV, own window, and the gate between them.

B batch, R loops in the block, T positions, S keys, H query heads, Hkv KV heads, Dh head_dim, D hidden. A block is R
loops times T positions of which one is 1: its R * T rows are either the positions of one loop, or the loops of one
position.
"""

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half

from .configuration_plt import PLTConfig


class PLTGate(nn.Module):
    """Weight of the shared-KV attention, a number in (0, 1) per head and token; it starts at 0.5 (LoopCoder-v2).

    Plain parameters instead of an `nn.Linear`, so that adapters and quantizers do not take it for a projection.
    """

    def __init__(self, config: PLTConfig):
        super().__init__()
        self.reads_query = config.gate_input == "query"
        input_size = config.head_dim if self.reads_query else config.hidden_size
        self.weight = nn.Parameter(torch.zeros(config.num_attention_heads, input_size))
        self.bias = nn.Parameter(torch.zeros(config.num_attention_heads))
        if not self.reads_query:
            self.gate_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, layer_input: Tensor, query: Tensor) -> Tensor:
        """Un-normed layer input `[B, rows, D]` and rotated query `[B, H, rows, Dh]` -> gate `[B, rows, H]`.

        At least float32, in which a gate near 1 still differs from 1 and has a gradient.
        """
        if self.reads_query:
            logits = (query * self.weight[:, None]).sum(dim=-1).transpose(1, 2) + self.bias
        else:
            logits = nn.functional.linear(self.gate_norm(layer_input), self.weight, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()


class FoldedQueries(nn.Module):
    """What attention functions read off their module when all queries of a KV head are rows of that head."""

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
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        # which loops attend to keys of their own: every loop, the later ones within a window, or none
        self.first_own_loop = {"own": 0, "gated_window": 1, "shared": config.num_loops}[config.loop_attention]

        query_size, key_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_output_bias)
        if config.qk_norm:
            self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.plt_gate = PLTGate(config) if config.has_gate else None
        self.folded_queries = FoldedQueries(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        layer_input: Tensor,
        shared_key: Tensor | None,
        shared_value: Tensor | None,
        loops: range,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        sliding_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Attend for one block.

        Args:
            hidden_states: the normed layer input `[B, R * T, D]`.
            layer_input: the same before its norm; the gate reads it.
            shared_key, shared_value: loop 0's `[B, Hkv, S, Dh]`, or None if the block starts with loop 0.
            loops: the loops in the block.
            position_embeddings: cosines and sines `[B, T, Dh]`, the same for every loop.
            attention_mask, sliding_attention_mask: over all keys and over the window, in the form that the attention
                implementation takes; None where it needs none.
            past_key_values: the `PLTCache` to extend.

        Returns:
            Output `[B, R * T, D]`; attention weights `[B, H, T, S]` of the last loop, over the shared KV if there is
            one (None for other loops, and from implementations that give none); shared key and value.
        """
        num_positions = position_embeddings[0].shape[1]
        own_loops = range(max(loops.start, self.first_own_loop), loops.stop)
        own_rows = slice(hidden_states.shape[1] - len(own_loops) * num_positions, None)

        query = self.split_heads(self.q_proj(hidden_states))
        query = rotate(self.q_norm(query) if self.config.qk_norm else query, position_embeddings)
        if loops.start == 0 or own_loops:
            key = self.split_heads(self.k_proj(hidden_states))
            key = rotate(self.k_norm(key) if self.config.qk_norm else key, position_embeddings)
            value = self.split_heads(self.v_proj(hidden_states))
        if own_loops:
            own = self.own_key_value(key[:, :, own_rows], value[:, :, own_rows], own_loops, past_key_values)

        if self.config.loop_attention == "own":
            output, weights = self.attend_own(query, *own, len(loops), attention_mask, **kwargs)
        else:
            if loops.start == 0:
                shared_key, shared_value = key[:, :, :num_positions], value[:, :, :num_positions]
                if past_key_values is not None:
                    shared_key, shared_value = past_key_values.update(shared_key, shared_value, self.layer_idx)
            output, weights = self.attend_shared(query, shared_key, shared_value, len(loops), attention_mask, **kwargs)

        if self.plt_gate is not None and own_loops:
            query = query[:, :, own_rows]
            gate = self.plt_gate(layer_input[:, own_rows], query).unsqueeze(-1)
            shared_weight, window_weight = gate.to(output.dtype), (1 - gate).to(output.dtype)
            kwargs["sliding_window"] = self.config.sliding_window
            window, _ = self.attend_own(query, *own, len(own_loops), sliding_attention_mask, **kwargs)
            mixed = shared_weight * output[:, own_rows] + window_weight * window
            output = mixed if own_rows.start == 0 else torch.cat((output[:, : own_rows.start], mixed), dim=1)

        weights = weights if loops.stop == self.config.num_loops else None
        return self.o_proj(output.flatten(2)), weights, shared_key, shared_value

    def split_heads(self, states: Tensor) -> Tensor:
        """`[B, rows, heads * Dh]` -> `[B, heads, rows, Dh]`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def own_key_value(
        self, key: Tensor, value: Tensor, loops: range, past_key_values: Cache | None
    ) -> tuple[Tensor, Tensor]:
        """New `[B, Hkv, R * T, Dh]` -> what those loops see of their own, `[B, R * Hkv, n, Dh]`."""
        key, value = loops_to_heads(key, len(loops)), loops_to_heads(value, len(loops))
        if past_key_values is None:
            return key, value
        return past_key_values.update_own(key, value, self.layer_idx, loops)

    def attend_own(
        self, query: Tensor, key: Tensor, value: Tensor, num_loops: int, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """Each loop on its own keys: loops are further heads, of queries and of keys.

        `[B, H, R * T, Dh]` on `[B, R * Hkv, n, Dh]` -> `[B, R * T, H, Dh]`, weights of the last loop `[B, H, T, n]`.
        """
        output, weights = self.attend(loops_to_heads(query, num_loops), key, value, mask, **kwargs)
        output = output.unflatten(2, (num_loops, -1)).transpose(1, 2).flatten(1, 2)
        return output, None if weights is None else weights.unflatten(1, (num_loops, -1))[:, -1]

    def attend_shared(
        self, query: Tensor, key: Tensor, value: Tensor, num_loops: int, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """All loops on the same keys: loops are further query heads of each KV head, so the keys are read once.

        `[B, H, R * T, Dh]` on `[B, Hkv, S, Dh]` -> `[B, R * T, H, Dh]`, weights of the last loop `[B, H, T, S]`.
        """
        output, weights = self.attend(query.unflatten(2, (num_loops, -1)).flatten(1, 2), key, value, mask, **kwargs)
        output = output.unflatten(2, (-1, num_loops)).movedim(3, 1).flatten(1, 2)
        return output, None if weights is None else weights.unflatten(1, (-1, num_loops))[:, :, -1]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        sliding_window: int | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the kernel that `config._attn_implementation` names in transformers' registry.

        Queries `[B, heads, T, Dh]` on keys `[B, KV heads, n, Dh]` -> `[B, T, heads, Dh]`, weights `[B, heads, T, n]`.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {"dropout": self.config.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        is_dense = mask is None or (isinstance(mask, Tensor) and mask.dim() == 4)
        if query.shape[2] > 1 or not is_dense:
            # the cache has already cut the keys of a single position to its window
            kwargs["sliding_window"] = sliding_window if query.shape[2] > 1 else None
            return attention(self, query, key, value, mask, **kwargs)

        # one position sees the same keys in all heads of a KV head: as rows of it, they need no expanded keys
        rows = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
        output, weights = attention(self.folded_queries, rows, key, value, mask, is_causal=False, **kwargs)
        output = output.transpose(1, 2).flatten(1, 2).unsqueeze(1)
        return output, None if weights is None else weights.flatten(1, 2).unsqueeze(2)


def rotate(states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of `[B, heads, R * T, Dh]`; one position serves all R rows of a block of loops."""
    cos, sin = (embedding.unsqueeze(1) for embedding in position_embeddings)
    return states * cos + rotate_half(states) * sin


def loops_to_heads(states: Tensor, num_loops: int) -> Tensor:
    """`[B, heads, R * T, Dh]` -> `[B, R * heads, T, Dh]`."""
    return states.unflatten(2, (num_loops, -1)).transpose(1, 2).flatten(1, 2)
