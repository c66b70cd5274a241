# SPDX-License-Identifier: Apache-2.0
"""A PLT in vLLM: all loops of a step in one pass where every request decodes, otherwise one after another.

For a reader who knows no vLLM. The engine builds `PLTForCausalLM` once in each process, fills it by `load_weights`,
and then calls, once per step, `forward` with the new tokens of all requests in one row `[T]` and `compute_logits` with
the states that are sampled from. There is no batch dimension and no cache argument: attention and carry find keys,
values and states in memory of the engine, by the step's metadata (see `carry.py`). `HasInnerState` and `IsHybrid` tell
the engine that some layers keep a state of fixed size, here the carry, next to keys and values; the three
`get_mamba_*` methods, which vLLM calls before there is a model, give its dtype, its shape and the way to copy it.

The linear layers are vLLM's, which splits them over processes and quantizes them; `prefix` is the name of a module, by
which vLLM finds its memory, its adapter and its quantization.

T tokens of all requests in a step, n requests, R loops in a pass, L loops, D hidden, V vocabulary.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsLoRA, SupportsQuant
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from .carry import slice_size
from .checks import check_graphs
from .decoder import PLTModel
from .weights import GATE, PUBLISHED_GATE, checked, stored_names

if TYPE_CHECKING:
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.v1.worker.gpu.model_states.interface import ModelState


class PLTForCausalLM(nn.Module, HasInnerState, IsHybrid, SupportsLoRA, SupportsQuant):
    """The decoder and its head, with the weights' names of a saved PLT."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    embedding_modules = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={PUBLISHED_GATE: GATE},
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            # not of experts, which vLLM's layer of all experts puts together
            ".mlp.gate_proj": (".mlp.gate_up_proj", 0),
            ".mlp.up_proj": (".mlp.gate_up_proj", 1),
            ".shared_expert.gate_proj": (".shared_expert.gate_up_proj", 0),
            ".shared_expert.up_proj": (".shared_expert.gate_up_proj", 1),
        },
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        # again: vLLM may have chosen another mode since, as it does for some connectors of KV caches
        check_graphs(vllm_config)
        self.config = config = vllm_config.model_config.hf_config
        self.quant_config = vllm_config.quant_config
        self.model = PLTModel(config, vllm_config, maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)

    @property
    def lora_manager(self) -> "LoRAModelManager":
        """vLLM's, which sets this once it has put in the layers that can have adapters."""
        return self._lora_manager

    @lora_manager.setter
    def lora_manager(self, manager: "LoRAModelManager") -> None:
        self._lora_manager = manager
        self.model.split_adapters()

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return (vllm_config.model_config.dtype,)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], ...]:
        return ((1, slice_size(vllm_config.model_config.hf_config)),)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        # of a state that has a page for each token of a step with drafts, see `carry.py`
        return MambaStateCopyFuncCalculator.linear_attention_state_copy_func()

    def get_model_state_cls(self) -> "type[ModelState]":
        """What the V2 runner keeps of requests; the V1 runner does not ask."""
        if self.model.carry is not None:
            from .model_state import PLTModelState  # takes seconds

            return PLTModelState
        from vllm.v1.worker.gpu.model_states.default import DefaultModelState

        return DefaultModelState

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Ids `[T]` or embeddings `[T, D]`, positions `[T]` -> states `[T, D]`."""
        if inputs_embeds is None:
            assert input_ids is not None  # the engine gives one of the two
            inputs_embeds = self.embed_input_ids(input_ids)
        return self.model(inputs_embeds, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """States `[n, D]` -> logits `[n, V]`."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a saved PLT's tensors as they come.

        Raises:
            ValueError: a tensor is missing, unknown, or of another shape than the config says, which of a quantized
                projection vLLM knows.
        """
        stored = None
        if self.quant_config is not None:
            stored = stored_names(self, self.packed_modules_mapping, self.config.num_experts)
        weights = checked(weights, self.config, stored)
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
