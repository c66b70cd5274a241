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

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFunc, MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid, SupportsLoRA, SupportsQuant
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix

from .carry import Carry, slice_size
from .checks import check_graphs, check_step
from .configs import ServedConfig
from .layer import PLTDecoderLayer
from .loops import InTurn, Together, goes_together
from .weights import GATE, PUBLISHED_GATE, checked


class PLTModel(nn.Module):
    """The decoder without its head."""

    def __init__(self, config: ServedConfig, vllm_config: VllmConfig, prefix: str):
        super().__init__()
        self.config = config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.embed_tokens",
        )
        self.layers = nn.ModuleList(
            PLTDecoderLayer(config, vllm_config, f"{prefix}.layers.{layer_idx}")
            for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.has_learned_scales:
            self.embedding_scale: nn.Parameter | float = nn.Parameter(torch.ones(1), requires_grad=False)
            self.hidden_scale: nn.Parameter | float = nn.Parameter(torch.ones(1), requires_grad=False)
        else:
            assert config.hidden_scale is not None  # the config has set it
            self.embedding_scale, self.hidden_scale = config.embedding_scale, config.hidden_scale
        self.carry = Carry(config, vllm_config, prefix) if config.has_carry else None
        loops = {"vllm_config": vllm_config, "num_loops": config.num_loops, "mix": self.mix, "run": self.run_layers}
        with set_model_tag("in_turn"):  # vLLM's compiler keeps what it compiles by this name
            self.in_turn = InTurn(**loops)
        self.together: Together | None = None
        self.max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        if goes_together(config, vllm_config):
            with set_model_tag("together"):
                self.together = Together(**loops)

    def forward(self, inputs_embeds: Tensor, positions: Tensor) -> Tensor:
        """Embeddings `[T, D]`, positions `[T]` -> the last loop's normed states `[T, D]`."""
        check_step()
        carry = self.carry
        carried, starts = (None, None) if carry is None else carry.read(inputs_embeds)
        # chosen here, outside of what vLLM compiles: each of the two is traced once
        if self.together is not None and carry is not None and carry.is_decoding:
            states = self.together(inputs_embeds, positions, carried)
        else:
            states = self.in_turn(inputs_embeds, positions, carried, starts)
            if self.together is not None and get_forward_context().attn_metadata is None:
                self.measure_together(inputs_embeds, positions)
        if carry is not None:
            carry.write(states[:-1])
        return states[-1] if self.config.loop_norm else self.norm(states[-1])

    def measure_together(self, inputs_embeds: Tensor, positions: Tensor) -> None:
        """Run the largest step that decodes while vLLM measures memory, by a step of many tokens and no request.

        Otherwise the pass of all loops would be missing from the measurement. It is also the first one that the
        compiler sees, which takes a dimension of 1 for a constant: so there are two rows at least.
        """
        assert self.together is not None and self.carry is not None  # `forward` has looked
        few = inputs_embeds[: max(2, self.max_num_seqs)]
        self.together(few, positions[: len(few)], self.carry.read(few)[0])

    def mix(self, inputs_embeds: Tensor, previous: Tensor) -> Tensor:
        """The input of a later loop: `a * E + b * H` (paper)."""
        return self.embedding_scale * inputs_embeds + self.hidden_scale * previous

    def run_layers(self, hidden_states: Tensor, positions: Tensor, loops: range) -> Tensor:
        """Run one pass through all layers, `[R * T, D]`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions, loops)
        return self.norm(hidden_states) if self.config.loop_norm else hidden_states


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

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        return (vllm_config.model_config.dtype,)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], ...]:
        return ((1, slice_size(vllm_config.model_config.hf_config)),)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[MambaStateCopyFunc, ...]:
        return MambaStateCopyFuncCalculator.short_conv_state_copy_func()

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
        weights = checked(weights, self.config, quantized=self.quant_config is not None)
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
