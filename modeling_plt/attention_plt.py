# SPDX-License-Identifier: Apache-2.0
"""Attention of a PLT block: shared KV, own window, and the gate between them.

B batch, R loops in the block, T positions, S keys, H query heads, Hkv KV heads, Dh head_dim, D hidden. A block is R
loops times T positions of which one is 1: its R * T rows are either the positions of one loop, or the loops of one
position.
"""

import sys

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half

from .blocks_plt import fold_blocks, unfold_blocks
from .cache_plt import last_columns
from .configuration_plt import PLTConfig
from .prefill_plt import tail
from .tensor_parallel_plt import own_heads, read_by_all_heads

# the first loop that attends to keys of its own: every loop does, the later ones do within a window, or none does
FIRST_OWN_LOOP = {"own": 0, "gated_window": 1, "shared": sys.maxsize}


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
        weight, bias = own_heads(self.weight), own_heads(self.bias)
        if self.reads_query:
            logits = (query * weight[:, None]).sum(dim=-1).transpose(1, 2) + bias
        else:
            logits = nn.functional.linear(read_by_all_heads(self.gate_norm(layer_input), self.weight), weight, bias)
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

        query_size, key_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_output_bias)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
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
        num_outputs: int,
        position_embeddings: tuple[Tensor, Tensor],
        position_ids: Tensor,
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
            num_outputs: Q, how many of the T positions put something out: the last ones.
            position_embeddings: cosines and sines `[B, 1, >= T, Dh]`, of which the last T are the block's, the same
                for every loop.
            position_ids: `[B or 1, >= T]`, likewise, for kernels that read them.
            attention_mask, sliding_attention_mask: over all keys and over the window, see `make_masks`.
            past_key_values: the `PLTCache` to extend.

        Returns:
            Output `[B, R * Q, D]`; attention weights `[B, H, T, S]` of the last loop, over the shared KV if there is
            one (None for other loops, and from implementations that give none); shared key and value.
        """
        num_positions = hidden_states.shape[1] // len(loops)
        loop_attention = self.config.loop_attention  # read once: it costs as much as a small kernel
        own_loops = range(max(loops.start, FIRST_OWN_LOOP[loop_attention]), loops.stop)
        own_keys = slice((len(loops) - len(own_loops)) * num_positions, None)
        own_queries = slice((len(loops) - len(own_loops)) * num_outputs, None)

        query = self.split_heads(self.q_proj(tail(hidden_states, len(loops) * num_outputs)))
        query = rotate(self.q_norm(query) if self.qk_norm else query, position_embeddings, num_outputs)
        if loops.start == 0 or own_loops:
            key = self.split_heads(self.k_proj(hidden_states))
            key = rotate(self.k_norm(key) if self.qk_norm else key, position_embeddings, num_positions)
            value = self.split_heads(self.v_proj(hidden_states))
        if loops.start == 0 and loop_attention != "own":
            shared_key, shared_value = key[:, :, :num_positions], value[:, :, :num_positions]
            if past_key_values is not None:
                shared_key, shared_value = past_key_values.update(shared_key, shared_value, self.layer_idx)
        num_tokens = position_embeddings[0].shape[2]
        if own_loops:
            own = loops_to_heads(key[:, :, own_keys], own_loops), loops_to_heads(value[:, :, own_keys], own_loops)
            if past_key_values is not None:
                own = past_key_values.update_own(*own, self.layer_idx, own_loops, num_tokens)

        kwargs["position_ids"] = tail(position_ids, num_outputs)
        if attention_mask is None and num_outputs < num_tokens and self.config._attn_implementation == "sdpa":
            keys = own[0] if loop_attention == "own" else shared_key
            attention_mask = last_queries(num_outputs, num_tokens, keys)
        if loop_attention == "own":
            output, weights = self.attend_own(query, *own, loops, attention_mask, **kwargs)
        else:
            output, weights = self.attend_shared(query, shared_key, shared_value, loops, attention_mask, **kwargs)

        if self.plt_gate is not None and self.training and not own_loops:
            output = output + zero_of(self.plt_gate).to(output.dtype)
        if loop_attention == "gated_window" and own_loops:
            query = query[:, :, own_queries]
            gate = self.plt_gate(tail(layer_input, len(loops) * num_outputs)[:, own_queries], query).unsqueeze(-1)
            shared_weight, window_weight = gate.to(output.dtype), (1 - gate).to(output.dtype)
            window = self.attend_window(query, *own, own_loops, sliding_attention_mask, **kwargs)
            mixed = shared_weight * output[:, own_queries] + window_weight * window
            output = mixed if own_queries.start == 0 else torch.cat((output[:, : own_queries.start], mixed), dim=1)

        weights = weights if loops.stop == self.config.num_loops else None
        return self.o_proj(output.flatten(2)), weights, shared_key, shared_value

    def split_heads(self, states: Tensor) -> Tensor:
        """`[B, rows, heads * Dh]` -> `[B, heads, rows, Dh]`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend_own(
        self, query: Tensor, key: Tensor, value: Tensor, loops: range, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """Each loop on its own keys: loops are further heads, of queries and of keys.

        `[B, H, R * Q, Dh]` on `[B, R * Hkv, n, Dh]` -> `[B, R * Q, H, Dh]`, weights of the last loop `[B, H, Q, n]`.
        """
        output, weights = self.attend(loops_to_heads(query, loops), key, value, mask, **kwargs)
        if len(loops) == 1:
            return output, weights
        output = output.unflatten(2, (len(loops), -1)).transpose(1, 2).flatten(1, 2)
        return output, None if weights is None else weights.unflatten(1, (len(loops), -1))[:, -1]

    def attend_window(
        self, query: Tensor, key: Tensor, value: Tensor, loops: range, mask: Tensor | None, **kwargs
    ) -> Tensor:
        """Each later loop on the window of its own keys, see `attend_own`."""
        num_queries, num_seen = query.shape[2] // len(loops), self.config.sliding_window - 1
        key, value = last_columns(key, num_seen + num_queries), last_columns(value, num_seen + num_queries)
        if not (isinstance(mask, Tensor) and mask.dim() == 5):
            kwargs["sliding_window"] = self.config.sliding_window
            return self.attend_own(query, key, value, loops, mask, **kwargs)[0]
        batch_size = query.shape[0]
        folded = fold_blocks(query, key, value, mask)
        return unfold_blocks(self.attend_own(*folded[:3], loops, folded[3], **kwargs)[0], batch_size, num_queries)

    def attend_shared(
        self, query: Tensor, key: Tensor, value: Tensor, loops: range, mask: Tensor | None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """All loops on the same keys: loops are further query heads of each KV head, so the keys are read once.

        `[B, H, R * Q, Dh]` on `[B, Hkv, S, Dh]` -> `[B, R * Q, H, Dh]`, weights of the last loop `[B, H, Q, S]`.
        """
        if len(loops) == 1:
            return self.attend(query, key, value, mask, **kwargs)
        query = query.unflatten(2, (len(loops), -1)).flatten(1, 2)
        output, weights = self.attend(query, key, value, mask, **kwargs)
        output = output.unflatten(2, (-1, len(loops))).movedim(3, 1).flatten(1, 2)
        return output, None if weights is None else weights.unflatten(1, (-1, len(loops)))[:, :, -1]

    def cut_mask(self, mask: Tensor | None, num_queries: int, num_keys: int) -> Tensor | None:
        """The part of a mask for the last queries on the last keys."""
        if is_dense(mask):
            return mask[:, :, mask.shape[2] - num_queries :, mask.shape[3] - num_keys :]
        if isinstance(mask, Tensor):
            return tail(mask, num_keys)
        return mask

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
        mask = self.cut_mask(mask, query.shape[2], key.shape[2])
        kwargs |= {"dropout": self.config.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        if query.shape[2] > 1 or not (mask is None or is_dense(mask)):
            # the cache has already cut the keys of a single position to its window
            kwargs["sliding_window"] = sliding_window if query.shape[2] > 1 else None
            return attention(self, query, key, value, mask, **kwargs)

        # one position sees the same keys in all heads of a KV head: as rows of it, they need no expanded keys
        rows = query.unflatten(1, (key.shape[1], -1)).squeeze(3)
        output, weights = attention(self.folded_queries, rows, key, value, mask, is_causal=False, **kwargs)
        output = output.transpose(1, 2).flatten(1, 2).unsqueeze(1)
        return output, None if weights is None else weights.flatten(1, 2).unsqueeze(2)


def rotate(states: Tensor, position_embeddings: tuple[Tensor, Tensor], num_positions: int) -> Tensor:
    """Rotary embedding of `[B, heads, R * T, Dh]` at the last T positions; a single one serves all R loops."""
    cos, sin = (tail(embedding, num_positions, dim=2) for embedding in position_embeddings)
    return states * cos + rotate_half(states) * sin


def zero_of(module: nn.Module) -> Tensor:
    """0, with a gradient of 0 for each parameter of a module that has nothing else to do in a loop.

    Sharded training reduces the gradients of a layer together, and fails where a loop has none for some of them.
    """
    return 0 * sum(own_heads(parameter).sum() for parameter in module.parameters())


def loops_to_heads(states: Tensor, loops: range) -> Tensor:
    """`[B, heads, R * T, Dh]` -> `[B, R * heads, T, Dh]`."""
    return states.unflatten(2, (len(loops), -1)).transpose(1, 2).flatten(1, 2)


def last_queries(num_queries: int, num_tokens: int, key: Tensor) -> Tensor:
    """The causal mask `[1, 1, Q, n]` of the last of T queries, on keys `[B, heads, n, Dh]` that start with those of T.

    Without it, `sdpa` would align the first of the queries with the first key.
    """
    visible = torch.ones(num_queries, key.shape[2], dtype=torch.bool, device=key.device)
    return visible.tril(num_tokens - num_queries)[None, None]


def is_dense(mask: object) -> bool:
    """Whether a mask has a row for each query, as those of `eager` and `sdpa`."""
    return isinstance(mask, Tensor) and mask.dim() == 4
