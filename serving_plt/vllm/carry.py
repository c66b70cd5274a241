# SPDX-License-Identifier: Apache-2.0
"""The carry: the states of earlier loops at each request's last token, kept from step to step (paper section 3.1).

For a reader who knows no vLLM. An engine works in steps. A step holds the new tokens of all running requests in one
row, a request after another: first those that decode, with one token each, then those that prefill. Memory that a
request needs in its next step belongs to the engine, which cuts it into pages (blocks) and gives each request some. A
module that wants such memory enters itself in `static_forward_context` under a name and states the shape of a page;
in every step it finds, under that name, its `metadata`: which page each request has, and where its tokens are. States
of a fixed size are called Mamba states there, after the models that had them first. The carry is one of them.

With drafts (speculative decoding), a request that decodes has up to k tokens more in a step, and vLLM says after it
how many of them it accepts. So such a request has 1 + k pages, one for each of its tokens in the step, and reads, in
the next one, that of the last token that was accepted.

T tokens of all requests in a step, n requests, L loops, D hidden.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.attention.backends.utils import NULL_BLOCK_ID
from vllm.v1.kv_cache_interface import MambaSpec

from .checkpoints import BACKEND, first_kept, inside
from .configs import ServedConfig
from .groups import num_slices


def slice_size(config: ServedConfig) -> int:
    """Elements of the carry in each slice: `(L - 1) * D` over all slices, the last one filled up."""
    return -(-(config.num_loops - 1) * config.hidden_size // num_slices(config))


class CarrySlice(nn.Module, MambaBase):
    """A part of every request's carry, in pages of vLLM's KV memory.

    The carry is cut into slices, because vLLM puts layers of a kind (attention, or a state of fixed size) into groups
    of equal size, which share its memory.

    vLLM knows when to copy, restore and free a state by its kind. A shift by one token is a convolution of width 2,
    which keeps one column, so a slice says that it is a short convolution; its page is that column, `[1, size]`.
    """

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.size, self.dtype, self.prefix = slice_size(config), vllm_config.model_config.dtype, prefix
        self.kv_cache = (torch.tensor([]),)  # vLLM puts the pages here, `[pages, 1, size]`
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"Duplicate layer name: {prefix}")
        layers[prefix] = self

    def get_state_shape(self) -> tuple[tuple[int, int], ...]:
        return ((1, self.size),)

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.SHORT_CONV

    def get_attn_backend(self) -> type[AttentionBackend]:
        return BACKEND

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> MambaSpec:
        """With a block for what is kept inside a prompt, at any token; a pruned one may not have that."""
        spec: Any = super().get_kv_cache_spec(vllm_config)
        if vllm_config.cache_config.kv_sharing_fast_prefill:
            return spec
        return replace(spec, num_prefill_checkpoint_blocks=1, prefill_checkpoint_alignment=1)

    @property
    def is_kv_cache_tp_replicated(self) -> bool:
        return True  # every process has all of a hidden state

    @property
    def metadata(self) -> Any:
        """The pages and places of the step's requests; None in a step without any, as vLLM runs to measure memory.

        One that tunes kernels has metadata, but of attention alone.
        """
        return (get_forward_context().attn_metadata or {}).get(self.prefix)


class Carry(nn.Module):
    """All slices: `read` gives a step the carries of its requests, `write` keeps those that they have at its end."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.num_states, self.hidden_size = config.num_loops - 1, config.hidden_size
        # of `CarrySlice`, which the type of a `ModuleList` cannot say
        self.slices: Any = nn.ModuleList(
            CarrySlice(config, vllm_config, f"{prefix}.layers.{number}.carry") for number in range(num_slices(config))
        )

    @property
    def is_decoding(self) -> bool:
        """Whether there are requests, each with one token in the step, and a token before it: so none has drafts."""
        metadata = self.slices[0].metadata
        return metadata is not None and metadata.num_decode_tokens == metadata.num_decodes == metadata.num_reqs

    @property
    def has_requests(self) -> bool:
        """Whether the step has any; not where vLLM measures memory or tunes kernels."""
        return self.slices[0].metadata is not None

    def read(self, start: Tensor) -> Tensor:
        """The carries `[L - 1, T, D]` of the tokens of a step that decodes, `[T, D]`; zeros for rows of no request."""
        carried = start.new_zeros(self.num_states, *start.shape)
        if self.has_requests:
            carried[:, self.ends()[:-1]] = self.of_requests().transpose(0, 1)
        return carried

    def write(self, states: Tensor) -> None:
        """Keep what each request has at its last token, of the states `[L - 1, T, D]` of a step that decodes."""
        if self.has_requests:
            rows, slots = self.places()
            self.keep(states[:, rows].transpose(0, 1), slots)

    def places(self) -> tuple[Tensor, Tensor]:
        """The tokens of the step whose states are kept `[m]`, and the pages for them.

        They are all of a request that decodes, the last of a prompt, and inside a prompt the end of a full block, for
        other requests. Where a request has no such token, another of its tokens goes to the null block.
        """
        step, ends = self.slices[0].metadata, self.ends()
        begins, lasts = ends[:-1], ends[1:] - 1
        places = [places_of_decodes(step, begins[: step.num_decodes], lasts[: step.num_decodes])]
        if step.num_prefills > 0:
            places.append((lasts[step.num_decodes :], step.state_indices_tensor_p.long()))
        if (more := inside(step)) is not None:
            before, pages = more
            places.append((begins[step.num_decodes :] + (before - 1).clamp(min=0), pages))
        rows, slots = zip(*places, strict=True)
        return torch.cat(rows), torch.cat(slots)

    def of_requests(self) -> Tensor:
        """Each request's carry `[n, L - 1, D]`, those that decode first; zeros for a request that starts.

        A CUDA graph has a fixed number of rows. Rows without a request have the null block as their page, and zeros.
        """
        metadata = self.slices[0].metadata
        slots = slots_before(metadata)
        states = self.pages[slots].flatten(1)[:, : self.num_states * self.hidden_size]
        # a page that is new to a request may still have the numbers of the last one that used it
        without = slots == NULL_BLOCK_ID
        if metadata.num_prefills:
            without[metadata.num_decodes :] |= ~metadata.has_initial_states_p
        return states.masked_fill(without[:, None], 0).unflatten(1, (self.num_states, -1))

    def keep(self, states: Tensor, slots: Tensor) -> None:
        """Put carries `[m, L - 1, D]` into the pages `[m]` of the slices.

        Rows that fill a graph share the null block, which stays 0: attention reads it where it masks, and its numbers
        must be finite.
        """
        pages = self.pages
        states = states.flatten(1).masked_fill((slots == NULL_BLOCK_ID)[:, None], 0)
        missing = pages[0].numel() - states.shape[1]
        pages[slots] = nn.functional.pad(states, (0, missing)).unflatten(1, pages.shape[1:])

    @property
    def pages(self) -> Tensor:
        """The pages of all slices in one view, `[pages, N, size]`: an operator reads or writes all of a request's.

        vLLM gives all layers one allocation. There the layers of a group, which have the same page of a request, lie
        at equal distances (`KVCacheTensor`), and the slices are a group, because they are no more than it holds.

        Raises:
            RuntimeError: they lie otherwise.
        """
        every = [each.kv_cache[0] for each in self.slices]
        first, places = every[0], [pages.data_ptr() for pages in every]
        distance = places[-1] - places[0]
        if len(every) > 1:
            distance //= len(every) - 1
        if any(place != places[0] + number * distance for number, place in enumerate(places)):
            raise RuntimeError(f"vLLM must place the slices of a carry at equal distances, got addresses {places}.")
        strides = (first.stride(0), distance // first.element_size(), 1)
        return first.as_strided((len(first), len(every), first.shape[-1]), strides)

    def ends(self) -> Tensor:
        """The places in the step where each request's tokens begin and end: `[n + 1]`.

        Made on the device: a tensor of Python numbers would be copied there, which waits for the GPU and cannot be a
        part of a graph.
        """
        metadata = self.slices[0].metadata
        if metadata.query_start_loc_d is not None:  # there may be drafts
            decodes = metadata.query_start_loc_d.long()
        else:
            decodes = torch.arange(metadata.num_decode_tokens + 1, device=self.slices[0].kv_cache[0].device)
        if metadata.num_prefills == 0:
            return decodes
        return torch.cat((decodes, metadata.num_decode_tokens + metadata.query_start_loc_p[1:].long()))


def slots_before(metadata: Any) -> Tensor:
    """The page with the state of the token before each request's first, `[n]`; requests that decode come first."""
    pages = metadata.state_indices_tensor_d[: metadata.num_decodes]
    decoding = pages[:, 0]
    if metadata.num_accepted_tokens is not None:  # of the step before, its first token included
        decoding = pages.gather(1, metadata.num_accepted_tokens[: metadata.num_decodes, None].long() - 1)[:, 0]
    if metadata.num_prefills == 0:
        return decoding.long()
    return torch.cat((decoding, metadata.state_indices_tensor_p)).long()


def places_of_decodes(metadata: Any, begins: Tensor, lasts: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of requests that decode, and a page for each, from their first and last tokens `[m]`.

    As many for each request as it can have, `[m * (1 + k)]`; where one has fewer, its last token goes to the null
    block.
    """
    pages = metadata.state_indices_tensor_d[: metadata.num_decodes].long()
    rows = first_kept(metadata, begins, lasts)[:, None] + torch.arange(pages.shape[1], device=pages.device)
    slots = pages.masked_fill(rows > lasts[:, None], NULL_BLOCK_ID)
    return torch.minimum(rows, lasts[:, None]).flatten(), slots.flatten()
