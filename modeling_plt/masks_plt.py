# SPDX-License-Identifier: Apache-2.0
"""What each token may see: everything before it in its sequence, and of a later loop's own keys, a window.

B batch, T new tokens, S cached + new, W sliding window.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .blocks_plt import as_new, count_blocks
from .cache_name_plt import THEIRS
from .cache_plt import PLTCacheMixin
from .configuration_plt import PLTConfig
from .positions_plt import (
    count_positions,
    ends_in_pads,
    follows_previous,
    has_gaps,
    holds_several_documents,
    last_positions,
    mark_pads,
)

DENSE = ("eager", "sdpa")  # implementations whose masks are tensors with a row per query and a column per key
NO_START = -(2**31)  # before every column


def make_masks(
    config: PLTConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    past_key_values: PLTCacheMixin | None,
) -> dict[str, Tensor | None]:
    """Everything that one forward needs to know of padding, documents and the tokens before.

    Args:
        inputs_embeds: `[B, T, any]`, of which only shape, dtype and device are read.
        attention_mask: `[B, S]`, 0 for pads.
        position_ids: `[B or 1, T]`.
        past_key_values: the cache, before the tokens are added.

    Returns:
        `token_positions` `[B, T]`, see `mark_pads`; `follows` `[B, T]`, see `follows_previous`; `full_attention` over
        all keys, and `sliding_attention` over a later loop's own keys, as the attention implementation takes them,
        None where it needs none. For `eager` and `sdpa` the latter is in blocks, see `window_mask`.

    Raises:
        ValueError: the shapes do not fit together.
        NotImplementedError: pads between real tokens, packed documents behind a cache.
    """
    num_past = 0 if past_key_values is None else past_key_values.get_seq_length()
    check_shapes(inputs_embeds, attention_mask, position_ids, num_past)
    refuse_overflow(past_key_values, num_past, inputs_embeds.shape[1])
    attention_mask = None if attention_mask is None else attention_mask != 0
    batch_size, num_tokens, _ = inputs_embeds.shape
    positions = position_ids
    if position_ids is None:
        positions = count_positions(attention_mask, num_past, num_tokens, inputs_embeds.device)
    token_positions = mark_pads(positions, attention_mask).expand(batch_size, -1)
    last_position = last_positions(past_key_values, batch_size, inputs_embeds.device)
    follows = follows_previous(token_positions, last_position)
    # tracing cannot read values, and decoding must not wait for them
    if num_tokens > 1 and not torch.compiler.is_compiling():
        has_mask = attention_mask is not None
        if has_mask:
            refuse_gaps(attention_mask, past_key_values)
        if holds_several_documents(token_positions, last_position, has_mask):
            if position_ids is None:
                refuse_other_count(token_positions, last_position)
            # without a mask and a cache, transformers builds the masks of documents from their positions
            attention_mask = None
            note_documents(past_key_values, num_past)

    masks = {"token_positions": token_positions, "follows": follows, "full_attention": None, "sliding_attention": None}
    is_static = past_key_values is not None and past_key_values.is_compileable
    if num_tokens == 1 and attention_mask is None and not is_static:
        return masks  # the last position sees everything that the cache holds
    if not is_static and num_past == 0:
        past_key_values = None  # an empty cache adds nothing to a mask
    mask_kwargs = {
        "config": config,
        "inputs_embeds": inputs_embeds,
        "attention_mask": attention_mask,
        "position_ids": token_positions,
    }
    masks["full_attention"] = finite(create_causal_mask(**mask_kwargs, **{THEIRS: past_key_values}))
    if config.has_gate and config._attn_implementation in DENSE:
        starts = sequence_starts(follows, num_past, attention_mask)
        visible = visible_in_window(config, starts, num_past, past_key_values)
        masks["sliding_attention"] = as_mask(visible, config, inputs_embeds.dtype)
    elif config.has_gate:
        window_cache = None if past_key_values is None else past_key_values.later_loops[0]
        masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_kwargs, **{THEIRS: window_cache})
    return masks


def sequence_starts(follows: Tensor, num_past: int | Tensor, attention_mask: Tensor | None) -> Tensor:
    """The column `[B, T]` where each token's sequence starts: the token itself, unless it follows another.

    Columns count everything that the cache has seen, pads too. The mask tells where a cached sequence starts.
    """
    columns = num_past + torch.arange(follows.shape[1], device=follows.device)
    first = 0 if attention_mask is None else attention_mask.to(follows.device).long().argmax(dim=1, keepdim=True)
    starts = torch.where(follows, first, columns)
    if torch.compiler.is_exporting():  # ONNX has no cumulative maximum
        is_before = columns[None, :] <= columns[:, None]
        return torch.where(is_before, starts.unsqueeze(1), NO_START).amax(dim=2)
    return starts.cummax(dim=1).values


def visible_in_window(
    config: PLTConfig, starts: Tensor, num_past: int | Tensor, past_key_values: PLTCacheMixin | None
) -> Tensor:
    """Which of its own keys a later loop sees: `window_mask`, or for one token behind a ring, `ring_mask`.

    `[B, 1, T, n]` for tokens that are no more than the window, else in blocks, `[blocks, B, 1, W, n]`.
    """
    num_tokens, window = starts.shape[1], config.sliding_window
    last = num_past + torch.arange(num_tokens, device=starts.device)[-1]
    if past_key_values is not None and past_key_values.is_compileable:
        num_kept = past_key_values.ring_size - 1
        if num_tokens == 1:
            return ring_mask(starts, last, window, past_key_values.ring_size)
    else:
        num_kept = min(window - 1, num_past)
    is_traced = torch.compiler.is_compiling()
    if num_tokens == 1 or torch.compiler.is_exporting() or (not is_traced and num_tokens <= window):
        # an exported program takes any length, and so cannot count blocks
        return window_mask(starts, last, window, 1, block=num_tokens, reach=num_kept)[0]
    # a reach that depends on the length would make traced code another graph for each
    reach = window - 1 if is_traced else min(window - 1, num_kept + num_tokens - window)
    return window_mask(starts, last, window, count_blocks(num_tokens, window), block=window, reach=reach)


def window_mask(starts: Tensor, last: Tensor, window: int, num_blocks: int, block: int, reach: int) -> Tensor:
    """Which keys each query sees, in blocks of queries: `[blocks, B, 1, block, reach + block]`.

    Each block of queries sees its own keys and the `reach` before them, so T queries cost T times the window, not T
    times T. The last block ends with the last token; the first may begin before the first.

    Args:
        starts: `[B, T]`, see `sequence_starts`.
        last: the column of the last token, a single number.
    """
    num_queries = num_blocks * block
    starts = pad(starts, (num_queries - starts.shape[1], 0), value=NO_START)
    # columns from here on count from the first query of their block
    firsts = last + 1 - num_queries + torch.arange(num_blocks, device=starts.device) * block
    starts = as_new(starts.unflatten(1, (-1, block)).transpose(0, 1)) - firsts[:, None, None]
    queries = torch.arange(block, device=starts.device).unsqueeze(1)
    keys = torch.arange(-reach, block, device=starts.device)
    return is_visible(keys, queries, starts.unsqueeze(3), window).unsqueeze(2)


def ring_mask(starts: Tensor, last: Tensor, window: int, size: int) -> Tensor:
    """The same for one token `[B, 1]` and n keys that lie in a ring, column c at c modulo n: `[B, 1, 1, n]`."""
    keys = last - (last - torch.arange(size, device=starts.device)) % size
    return is_visible(keys, last, starts, window)[:, None, None]


def is_visible(keys: Tensor, queries: Tensor, starts: Tensor, window: int) -> Tensor:
    return (keys <= queries) & (keys > queries - window) & (keys >= starts)


def as_mask(visible: Tensor, config: PLTConfig, dtype: torch.dtype) -> Tensor:
    """A mask as `eager` and `sdpa` take it: numbers to add to the scores, or booleans."""
    if config._attn_implementation == "sdpa":
        return visible
    return finite(torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min))


def finite(mask: Tensor | None) -> Tensor | None:
    """A mask whose numbers are finite in the float32 softmax of `eager` too: rows of only -inf would give NaN."""
    if isinstance(mask, Tensor) and mask.dtype == torch.float64:
        return mask.clamp(min=torch.finfo(torch.float32).min)
    return mask


def check_shapes(
    inputs_embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, num_past: int | Tensor
) -> None:
    batch_size, num_tokens, _ = inputs_embeds.shape
    is_known = can_read(num_past, num_tokens)
    if attention_mask is not None and not (
        attention_mask.dim() == 2
        and attention_mask.shape[0] == batch_size
        and (not is_known or attention_mask.shape[1] == int(num_past) + num_tokens)
    ):
        wanted = [batch_size, int(num_past) + num_tokens] if is_known else [batch_size, "any"]
        raise ValueError(
            "`attention_mask` must be [batch, cached + new tokens] with 1 for real tokens, "
            f"{wanted} here, got {list(attention_mask.shape)}."
        )
    # a comparison of tuples would not tie a traced length to the given one
    if position_ids is not None and not (
        position_ids.dim() == 2 and position_ids.shape[0] in (1, batch_size) and position_ids.shape[1] == num_tokens
    ):
        raise ValueError(
            f"`position_ids` must be [batch, new tokens], {[batch_size, num_tokens]} here, got "
            f"{list(position_ids.shape)}."
        )


def can_read(length: int | Tensor, num_tokens: int) -> bool:
    """Whether a cached length is known: in a tensor, not while tracing, nor where every token would wait for it."""
    return isinstance(length, int) or (
        not torch.compiler.is_compiling() and (num_tokens > 1 or length.device.type == "cpu")
    )


def refuse_overflow(past_key_values: PLTCacheMixin | None, num_past: int | Tensor, num_tokens: int) -> None:
    room = -1 if past_key_values is None else past_key_values.get_max_length()
    if can_read(num_past, num_tokens) and 0 <= room < num_past + num_tokens:
        raise ValueError(f"The static cache holds {room} tokens, {int(num_past) + num_tokens} are wanted.")


def refuse_gaps(attention_mask: Tensor, past_key_values: PLTCacheMixin | None) -> None:
    """Refuse pads between real tokens; close a cache behind which real tokens would come after pads."""
    if has_gaps(attention_mask):
        raise NotImplementedError(
            "`attention_mask` has pads between real tokens, which is not supported: they would stand between a token "
            "and the one it follows, and fill the windows. Pad on the left; pack documents without a mask. (Without a "
            "mask, `generate` takes every token that equals `pad_token_id` for a pad.)"
        )
    if past_key_values is not None and ends_in_pads(attention_mask):
        past_key_values.why_closed = "it ends in pads, and tokens behind them are not supported. Pad on the left."


def refuse_other_count(token_positions: Tensor, last_position: Tensor) -> None:
    raise ValueError(
        f"`past_key_values` ends at positions {last_position.flatten().tolist()} of its rows, but the new tokens were "
        f"counted to start at {token_positions[:, 0].tolist()}: the `attention_mask` must mark the pads of the cached "
        "tokens, or `position_ids` must be given."
    )


def note_documents(past_key_values: PLTCacheMixin | None, num_past: int | Tensor) -> None:
    """Refuse packed documents behind a filled cache; close an empty one, because it cannot be continued."""
    if num_past > 0:
        raise NotImplementedError(
            "`position_ids` start a new document behind a filled cache; pack documents in one forward without a cache."
        )
    if past_key_values is not None:
        past_key_values.why_closed = (
            "it holds several documents packed into one row, or padded rows that came without an `attention_mask`, "
            "and new tokens would attend to all of them."
        )
