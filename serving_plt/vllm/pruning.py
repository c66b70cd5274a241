# SPDX-License-Identifier: Apache-2.0
"""Pruned prefill: of a step's tokens, later loops run those on which something still depends.

Of a prompt in a step, needed are the state of the last token, from which the next token is sampled, and what the next
step reads: the carry, and the last W - 1 keys of every window. So a layer of a later loop needs the last K tokens of
each request, where K shrinks by W - 1 from layer to layer, and by one from a loop to the one after it. `generate`
leaves out the same positions (`needed_positions`); what a request has no more than K of, as one that decodes, is run
whole. Loop 0 runs all tokens, so shared keys are complete.

In vLLM's words: the layers of a later loop are in parts, each with an attention backend of its own, which is the usual
one with a builder of metadata that shortens each request to its last K tokens, and with writes to the slots of these.
A block of a window's keys that a step has not written is not offered to other requests: see `WindowManager`.

T tokens of all requests in a step, n requests, k rows of them, L loops, W window, D hidden.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import (
    AttentionBackend,
    CommonAttentionMetadata,
    subclass_attention_backend_with_overrides,
)
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from modeling_plt.passes_plt import needed_positions

from .configs import ServedConfig

MOST_PARTS = 4  # each has builders of metadata, which cost time in every step


class Part(NamedTuple):
    """Layers of a loop that run the same rows; `reach`: how many of a request's last tokens, or None for all."""

    layers: range
    reach: int | None


def parts_of(config: ServedConfig, vllm_config: VllmConfig, loop_idx: int) -> list[Part]:
    """The layers that loop, in parts that run the same rows in a loop.

    Pruned only if the user asks for it by `--kv-sharing-fast-prefill`; `checks.py` refuses it where it cannot be had.
    """
    stage = config.looped_stage
    if loop_idx == 0 or not vllm_config.cache_config.kv_sharing_fast_prefill:
        return [Part(stage.layers, None)]
    wanted = 1 + vllm_config.num_speculative_tokens  # positions of the last loop that are sampled from
    of_stages = needed_positions(config, vllm_config.model_config.max_model_len, wanted)
    reaches = of_stages[config.stages.index(stage)][loop_idx]
    size = -(-len(stage.layers) // MOST_PARTS)
    return [Part(stage.layers[first : first + size], reaches[first]) for first in range(0, len(stage.layers), size)]


def reach_of(config: ServedConfig, vllm_config: VllmConfig, loop_idx: int, layer_idx: int) -> int | None:
    """The reach of a layer that loops, in a loop."""
    return next(part.reach for part in parts_of(config, vllm_config, loop_idx) if layer_idx in part.layers)


class Kept(NamedTuple):
    """The rows of a step that a part runs.

    Attributes:
        rows: their places among the tokens of the step `[k]`, in order.
        firsts: which of them are the first of a request in this step, `[<= n]`.
        requests: whose, `[<= n]`.
    """

    rows: Tensor
    firsts: Tensor
    requests: Tensor


def kept_of(ends: Tensor, reach: int) -> tuple[Kept, Tensor]:
    """The last `reach` tokens of each request, of requests that begin and end at `[n + 1]`, on the host.

    Returns:
        Also where each request begins and ends among them, `[n + 1]`.
    """
    lengths = ends.diff()
    kept = lengths.clamp(max=reach)
    new_ends = torch.nn.functional.pad(kept.cumsum(0), (1, 0)).to(ends.dtype)
    rows = torch.arange(int(new_ends[-1])) + (ends[1:] - new_ends[1:]).repeat_interleave(kept)
    requests = ((lengths <= reach) & (lengths > 0)).nonzero()[:, 0]
    return Kept(rows, new_ends[requests].long(), requests), new_ends


def select(states: Tensor, rows: Tensor | None, among: Tensor | None) -> Tensor:
    """Some rows of a step `[k]`, of states `[..., D]` of the rows `among`, which include them; None: all tokens."""
    if rows is among:
        return states
    assert rows is not None
    return states[rows if among is None else torch.searchsorted(among, rows)]


WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


@contextlib.contextmanager
def whole(is_wanted: bool) -> Iterator[None]:
    """Prune no step whose metadata are built meanwhile, if wanted."""
    token = WHOLE.set(is_wanted)
    try:
        yield
    finally:
        WHOLE.reset(token)


def shortened(m: CommonAttentionMetadata, reach: int) -> tuple[CommonAttentionMetadata, Kept | None]:
    """A step's metadata, for the last `reach` tokens of each request; and which they are, None if that is all."""
    if m.max_query_len <= reach or WHOLE.get():
        return m, None
    kept, ends = kept_of(m.query_start_loc_cpu, reach)
    device = m.query_start_loc.device
    # by pinned memory: a copy of any other waits for the GPU
    kept = Kept(*(async_tensor_h2d(each, device=device) for each in kept))
    changed: dict[str, Any] = {
        "query_start_loc": async_tensor_h2d(ends, device=device),
        "query_start_loc_cpu": ends,
        "num_actual_tokens": len(kept.rows),
        "max_query_len": reach,
        "slot_mapping": m.slot_mapping[kept.rows],
        "positions": None if m.positions is None else m.positions[kept.rows],
        "_num_computed_tokens_cache": None,
        "_token_to_req_indices_cache": None,
    }
    return m.replace(**changed), kept


@cache
def pruned(base: type[AttentionBackend], reach: int) -> type[AttentionBackend]:
    """The backend, for layers that are given the last `reach` tokens of each request of a step."""
    builder: Any = base.get_builder_cls()
    impl: Any = base.get_impl_cls()

    class Builder(builder):
        supports_update_block_table = False  # another group's metadata may be of other rows

        def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, *rest: Any) -> Any:
            m, kept = shortened(common_attn_metadata, reach)
            metadata = super().build(common_prefix_len, m, *rest)
            metadata.kept, metadata.slot_mapping = kept, m.slot_mapping
            return metadata

    class Impl(impl):
        def forward(
            self,
            layer: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            metadata: Any,
            *rest: Any,
            **more: Any,
        ) -> Tensor:
            writes = key is not None and not base.forward_includes_kv_cache_update
            if metadata is not None and writes:
                self.do_kv_cache_update(layer, key, value, kv_cache, metadata.slot_mapping)
            return super().forward(layer, query, key, value, kv_cache, metadata, *rest, **more)

    overrides = {
        "get_builder_cls": lambda: Builder,
        "get_impl_cls": lambda: Impl,
        "forward_includes_kv_cache_update": True,
    }
    return subclass_attention_backend_with_overrides(f"Last{reach}", base, overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSpec(SlidingWindowSpec):
    """A window whose blocks are written up to K tokens before the end of a step."""


class WindowManager(SlidingWindowManager):
    """Offers to other requests those blocks alone that a step's end needs: earlier ones may not have been written."""

    @classmethod
    def reachable_block_mask(
        cls,
        start_block: int,
        end_block: int,
        alignment_tokens: int | None,
        kv_cache_spec: Any,
        use_eagle: bool,
        retention_interval: int | None = None,
        reachable_boundaries: Sequence[int] = (),
        dcp_world_size: int = 1,
        final_segment_end_block: int | None = None,
    ) -> list[bool]:
        """Which blocks, of those that a step has filled, other requests may find again."""
        usual = super().reachable_block_mask(
            start_block,
            end_block,
            alignment_tokens,
            kv_cache_spec,
            use_eagle,
            retention_interval,
            reachable_boundaries,
            dcp_world_size,
            final_segment_end_block,
        )
        blocks = range(start_block, end_block)
        needed = cls._contiguous_blocks_for_hit(kv_cache_spec.sliding_window, kv_cache_spec.block_size, use_eagle)
        wanted = [True] * len(blocks) if usual is None else usual
        return [want and block >= end_block - needed for block, want in zip(blocks, wanted, strict=True)]


def register_windows() -> None:
    """Tell vLLM, in each of its processes, who manages the blocks of `WindowSpec`."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(WindowSpec, WindowManager, SlidingWindowSpec)


class WindowAttention(Attention):
    """Attention to a window of which a step may write the end alone."""

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> WindowSpec:
        spec: Any = super().get_kv_cache_spec(vllm_config)
        return WindowSpec(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)})
