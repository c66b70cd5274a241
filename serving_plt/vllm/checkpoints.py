# SPDX-License-Identifier: Apache-2.0
"""Where in a prompt its carry is kept for other requests, without a step that ends there.

Another request with the same beginning goes on from the last full block of a prompt, for which it needs the carry
there. vLLM would end a step at that place, and run the rest of the prompt in a step of its own; a layer that can keep
its state inside a step gets a block for it instead. The places are in the metadata, as `checkpoint`; beside them it is
noted which requests that decode go on from their last token alone, as `without_drafts`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.checkpoint import MambaPrefillCheckpointBuilder, MambaPrefillCheckpointMetadata
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import CommonAttentionMetadata, subclass_attention_backend_with_overrides
from vllm.v1.attention.backends.short_conv_attn import (
    ShortConvAttentionBackend,
    ShortConvAttentionMetadata,
    ShortConvAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import MambaSpec


@dataclass
class CarryMetadata(ShortConvAttentionMetadata):
    """Of a step.

    Attributes:
        checkpoint: what to keep inside prompts, for each request that prefills; None if there is nothing.
        without_drafts: which of the requests that decode have several tokens, none of them a draft `[num_decodes]`;
            None if there is no such request. So vLLM's V1 runner takes one that was preempted, and has some of its own
            answer left to be computed again.
    """

    checkpoint: MambaPrefillCheckpointMetadata | None = None
    without_drafts: Tensor | None = None


class CarryBuilder(ShortConvAttentionMetadataBuilder):
    """Makes `CarryMetadata`."""

    metadata_cls = CarryMetadata
    supports_update_block_table = False  # the places depend on the lengths

    def __init__(
        self, kv_cache_spec: MambaSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.checkpoints = MambaPrefillCheckpointBuilder(vllm_config, kv_cache_spec)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, *rest: Any, **more: Any
    ) -> CarryMetadata:
        m, built = common_attn_metadata, super().build(common_prefix_len, common_attn_metadata, *rest, **more)
        if (drafts := more.get("num_decode_draft_tokens_cpu")) is not None:
            several = m.query_start_loc_cpu.diff()[: built.num_decodes] > 1
            without_drafts = several & (drafts[: built.num_decodes] < 0)
            if without_drafts.any():
                built.without_drafts = async_tensor_h2d(without_drafts, device=m.query_start_loc.device)
        if built.num_prefills > 0:
            requests = range(built.num_decodes, built.num_decodes + built.num_prefills)
            built.checkpoint = self.checkpoints.build(m, [*requests])
        return built


def inside(step: CarryMetadata) -> tuple[Tensor, Tensor] | None:
    """For each request that prefills: how many of its tokens in the step come before such a place, and a page `[n]`.

    0 and the null block, where there is no place; None if there is none at all.
    """
    if step.num_prefills == 0 or step.checkpoint is None:
        return None
    return step.checkpoint.checkpoint_offsets.long(), step.checkpoint.state_indices.long()


def first_kept(step: CarryMetadata, begins: Tensor, lasts: Tensor) -> Tensor:
    """Of requests that decode, with their first and last tokens in the step: the first one whose state is kept `[m]`.

    All are kept, since the next step goes on from any; where none is a draft, it takes the last for the only one.
    """
    return begins if step.without_drafts is None else torch.where(step.without_drafts, lasts, begins)


BACKEND = subclass_attention_backend_with_overrides(  # of the layer that a slice of the carry is
    "Carry", ShortConvAttentionBackend, {"get_builder_cls": lambda: CarryBuilder}
)
