# SPDX-License-Identifier: Apache-2.0
"""The Parallel Loop Transformer (arXiv 2510.24824): one stack of layers, run in several loops.

B batch, L loops, T new tokens, S cached + new, H query heads, Hkv KV heads, Dh head_dim, D hidden, V vocabulary.
"""

import sys
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts, Qwen3MoeTopKRouter
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_plt import PLTAttention, PLTGate
from .cache_plt import PLTCache, PLTCacheMixin, extending
from .configuration_plt import PLTConfig, Stage
from .experts_plt import (
    PLTSparseMoeBlock,
    Routed,
    balance_loss,
    by_loop_and_layer,
    fuse_experts,
    idle_in,
    in_order,
    share_of_labels,
    wanted_routing,
)
from .generation_plt import PLTGenerationMixin
from .names_plt import CACHE_NAMES, OURS, THEIRS, ReadsBothGateNames, SavesAllItWasGiven, gets_it_as
from .pads_plt import concatenate, show, tail
from .passes_plt import Pass, schedule, shift
from .refusals_plt import (
    position_adapters,
    refuse_loops,
    refuse_misplaced,
    refuse_missing,
    refuse_other_states,
    refuse_states_after_others,
    refuse_unusable,
    refuse_wrong_inputs,
)
from .sequence_plt import NewTokens, read_tokens

logger = logging.get_logger(__name__)

RECORDED = ("output_hidden_states", "output_attentions", "output_loop_hidden_states", "output_router_logits")


@dataclass
class PLTModelOutputWithPast(BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` and, with `output_loop_hidden_states=True`, the normed states of every loop.

    `loop_hidden_states` is a tuple of L tensors `[B, T, D]`; `lm_head` of each is that loop's logits, and the last
    is `last_hidden_state`. `hidden_states` (N + 1) and `attentions` (N) are those of each layer's last loop.
    `router_logits`, with `output_router_logits=True`, are those of every loop and sparse layer, the layers of loop 0
    first, `[B * T, E]` each: as Qwen3-MoE's, L times as many.
    """

    loop_hidden_states: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


@dataclass
class PLTCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast`, `loop_hidden_states` and `router_logits`, see `PLTModelOutputWithPast`.

    `aux_loss` is the balance loss of these router logits, without its weight.
    """

    aux_loss: Tensor | None = None
    loop_hidden_states: tuple[Tensor, ...] | None = None
    router_logits: tuple[Tensor, ...] | None = None


class PLTDecoderLayer(GradientCheckpointingLayer):
    """A Llama layer that hands loop 0's keys and values to the later loops."""

    def __init__(self, config: PLTConfig, layer_idx: int):
        super().__init__()
        self.self_attn = PLTAttention(config, layer_idx)
        self.is_sparse = config.is_sparse(layer_idx)
        self.mlp = PLTSparseMoeBlock(config) if self.is_sparse else LlamaMLP(config)
        norms_input, norms_output = config.norm_placement != "output", config.norm_placement != "pre"
        self.norms_sum = config.norm_placement == "residual"
        self.input_layernorm = optional_norm(config, norms_input)
        self.input_layernorm_2 = optional_norm(config, norms_output)
        self.post_attention_layernorm = optional_norm(config, norms_input)
        self.post_attention_layernorm_2 = optional_norm(config, norms_output)

    def forward(
        self,
        hidden_states: Tensor,
        shared_key: Tensor | None,
        shared_value: Tensor | None,
        run: Pass,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Run one pass `[B, R * P, D]` -> `[B, R * Q, D]`, attention weights, router logits, shared key and value.

        Arguments as in `PLTAttention.forward`. Shared keys and values are tensors and not read from a cache: training
        needs no cache, and gradient checkpointing sees them.
        """
        normed = self.input_layernorm(hidden_states)
        attended, weights, *shared = self.self_attn(normed, hidden_states, shared_key, shared_value, run, **kwargs)
        hidden_states = tail(hidden_states, attended.shape[1])
        hidden_states = self.add(hidden_states, attended, self.input_layernorm_2)
        output, router_logits = self.mlp(self.post_attention_layernorm(hidden_states)), None
        if self.is_sparse:
            output, router_logits = output
        hidden_states = self.add(hidden_states, output, self.post_attention_layernorm_2)
        return hidden_states, weights, router_logits, *shared

    def add(self, hidden_states: Tensor, output: Tensor, norm: nn.Module) -> Tensor:
        """States and what attention or MLP puts out `[B, n, D]`, of which a norm may be wanted, or of their sum."""
        summed: Tensor = norm(hidden_states + output) if self.norms_sum else hidden_states + norm(output)
        return summed


def optional_norm(config: PLTConfig, is_there: bool) -> nn.Module:
    return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps) if is_there else nn.Identity()


class LastLoopTap(nn.Module):
    """Sees what enters and leaves each layer in its last loop, for transformers to record; changes nothing."""

    def forward(
        self, layer_input: Tensor, layer_output: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Layer input and output `[B, Q, D]`, attention weights `[B, H, Q, S]`."""
        return layer_output, weights


class PLTPreTrainedModel(SavesAllItWasGiven, ReadsBothGateNames):
    config: PLTConfig
    config_class = PLTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PLTDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _supports_context_parallel = False
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(LastLoopTap, index=0),
        "attentions": OutputRecorder(LastLoopTap, index=1),
    }

    def __init__(self, config: PLTConfig, *args: Any, **kwargs: Any):
        config.validate()  # overrides in `from_pretrained` have set one field at a time
        super().__init__(config, *args, **kwargs)
        fuse_experts(config)
        tell_peft(config.model_type)
        warn_of_untrained_loops(config)
        self.built_for = config.most_loops

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with one matrix per expert, and with what an edit to one loop leaves unread."""
        fuse_experts(self.config)
        if self.config.most_loops == 1 and self.built_for > 1:
            self.config.trained_loops = self.built_for
        super().save_pretrained(*args, **kwargs)

    @property
    def one_pass(self) -> bool:
        """Whether the loops of a new token run in one pass, or one after another with the same logits; not saved."""
        return self.config.one_pass

    @one_pass.setter
    def one_pass(self, value: bool) -> None:
        self.config.one_pass = value

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for its decorator in this file, and would go on with "eager"

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Save this code with the model; an Auto class that has loaded it from a folder asks each folder anew.

        Auto classes remember a model's class by its config's class, which two folders share if they hold the same
        `configuration_plt.py`: the second would run the model of the first.
        """
        super().register_for_auto_class(auto_class)
        if not isinstance(auto_class, str):
            known = auto_class._model_mapping._extra_content
            for config_class in [key for key, model_class in known.items() if model_class is cls]:
                del known[config_class]
            known[cls.config_class] = cls  # the config beside this code is no other folder's

    def num_active_parameters(self) -> int:
        """How many parameters a token is computed with: all, without the experts that it is not sent to."""
        return self.num_parameters() - idle_in(self)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Operations of forward and backward for a batch, 6 per token and weight: looped layers count once per loop.

        Of experts, those count to which a token is sent. `Trainer` would count all of them, and loops once, because
        it asks the model for nothing but its number of parameters.
        """
        decoder: Any = self.base_model
        weights = self.num_parameters(exclude_embeddings=True) - idle_in(decoder.layers)
        stage = self.config.looped_stage
        layers = decoder.layers[stage.layers.start : stage.layers.stop]
        active = sum(parameter.numel() for parameter in layers.parameters()) - idle_in(layers)
        weights += len(stage.loops[1:]) * active
        if self.config.has_adapter:
            num_calls = len(stage.loops) - (self.config.initial_state == "none")
            weights += (num_calls - 1) * decoder.adapter.weight.numel()
        head = self.get_output_embeddings()
        if head is not None and self.config.tie_word_embeddings:
            weights += head.weight.numel()  # left out as an embedding, but multiplied with as a head
        return 6 * inputs[self.main_input_name].numel() * weights

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Qwen3MoeExperts | Qwen3MoeTopKRouter):
            for parameter in module.parameters():
                init.normal_(parameter, std=self.config.initializer_range)
        if isinstance(module, PLTGate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, PLTModel) and self.config.has_learned_scales:
            assert self.config.hidden_scale is not None  # as above
            init.constant_(module.embedding_scale, self.config.embedding_scale)
            init.constant_(module.hidden_scale, self.config.hidden_scale)


class PLTModel(PLTPreTrainedModel):
    """The decoder without its head: embeddings, the looped layers, the final norm."""

    def __init__(self, config: PLTConfig):
        super().__init__(config)
        # without `padding_idx`, which would keep gradients from an end token that is the pad too; a mere pad gets none
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            PLTDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.has_adapter:
            self.adapter = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        if config.has_learned_scales:
            assert config.hidden_scale is not None  # the config has filled it in
            self.embedding_scale = nn.Parameter(torch.full((1,), float(config.embedding_scale)))
            self.hidden_scale = nn.Parameter(torch.full((1,), float(config.hidden_scale)))
        self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # it reads no field that ours lacks
        self.rope_built_with = deepcopy(config.rope_parameters)
        self.last_loop_tap = LastLoopTap()
        self.gradient_checkpointing = False
        self.post_init()

    @gets_it_as(OURS)
    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]  # transformers' keywords name `position_ids` too
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PLTCacheMixin | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_loop_hidden_states: bool = False,
        output_router_logits: bool | None = None,
        num_outputs: int = 0,
        tokens: NewTokens | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PLTModelOutputWithPast:
        """Run all loops over T tokens (paper section 3).

        Args:
            input_ids: `[B, T]`; or `inputs_embeds` `[B, T, D]`, which then are the embeddings of every loop.
            attention_mask: `[B, S]`, 0 for pads, which may be anywhere: a token follows the last real token before it,
                and a pad's output is that of the last real token before it.
            position_ids: `[B, T]` or `[1, T]`. A token continues the token before it if its position is one more;
                any other position starts a sequence, as in packed documents. Absent, they are counted from the
                mask, or from the length of the cache. In compiled code, packed documents must come without a mask.
            past_key_values: the cache of the tokens so far; extended in place. Also taken under the name `cache`.
                A forward that ends in an exception closes it.
            use_cache: build a cache if none is given.
            output_loop_hidden_states: also return the normed states of every loop.
            output_router_logits: also return the router logits of every loop, if there are experts.
            num_outputs: how many of the last positions to return, 0 for all. Positions that cannot affect them are not
                computed, see `needed_positions`; outputs have those that were.
            tokens: a ready-made `NewTokens`, which `generate` passes instead: it calls `read_tokens` outside of a
                compiled step, and mask, positions and cache are not read again.
            kwargs: for the attention implementation (`cu_seq_lens_q`, ...), and `output_hidden_states`,
                `output_attentions`, `return_dict` as everywhere.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, no token, shapes that do not fit together,
                a cache under both of its names, or positions that do not continue those in it.
            TypeError: a cache that is not a `PLTCache`.
            NotImplementedError: continuous batching, bidirectional attention, packed documents after a filled cache.

        The position of a single token is compared with the cache on a CPU, and elsewhere in the first step of
        `generate`: reading it would wait for the device at every step.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        if use_cache and past_key_values is None:
            past_key_values = PLTCache(self.config)
        self.refuse_unsupported(past_key_values, inputs_embeds, kwargs)
        if output_loop_hidden_states:
            refuse_states_after_others(self.config, past_key_values)
        if tokens is None:
            tokens = read_tokens(self.config, inputs_embeds, attention_mask, position_ids, past_key_values)
        if past_key_values is not None and past_key_values.carry.record_past:
            num_outputs = 0  # any of the tokens may be taken back
        carry = self.carried_states(past_key_values, inputs_embeds)
        routed = wanted_routing(self.config, output_router_logits)
        to_read_out: list[Tensor] | None = [] if output_loop_hidden_states and self.config.has_coda else None
        with extending(past_key_values, tokens.are_packed):
            # the cache keeps states with pads first (`handed_on`), the caller gets them in the given order (`states`)
            handed_on = states = self.run_passes(
                inputs_embeds, carry, tokens, num_outputs, past_key_values, routed, to_read_out, **kwargs
            )
            if tokens.pads is not None:
                states = [tokens.pads.give_back(*pair) for pair in zip(states, carry, strict=True)]
            if past_key_values is not None:
                past_key_values.carry.write(handed_on, tokens.positions, tokens.pads, tokens.num_pads)
        loop_hidden_states = None
        if output_loop_hidden_states:
            earlier = states[:-1] if self.config.loop_norm else [self.norm(state) for state in states[:-1]]
            if to_read_out is not None:
                earlier = [self.read_out(*loop, tokens, **kwargs) for loop in enumerate(to_read_out)]
            loop_hidden_states = (*earlier, states[-1])
        cache: dict[str, Any] = {THEIRS: past_key_values}
        return PLTModelOutputWithPast(
            last_hidden_state=states[-1],
            loop_hidden_states=loop_hidden_states,
            router_logits=in_order(routed),
            **cache,
        )

    def embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """What the first layer reads `[B, T, D]`."""
        refuse_wrong_inputs(input_ids, inputs_embeds)
        embeds: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        multiplier = self.config.embedding_multiplier
        return embeds if multiplier == 1 else multiplier * embeds

    def run_passes(
        self,
        inputs_embeds: Tensor,
        carry: list[Tensor],
        tokens: NewTokens,
        num_outputs: int,
        past_key_values: PLTCacheMixin | None,
        routed: Routed | None,
        to_read_out: list[Tensor] | None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Embeddings `[B, T, D]` and carry `[B, 1, D]` -> each loop's states, its last positions `[B, <= T, D]`.

        In place of the last loop's, which no loop reads, the output: after the coda and the final norm. `routed` is
        filled with router logits, and `to_read_out` with the earlier loops' states before any norm, if wanted.
        """
        adapters = position_adapters(self.layers)
        if adapters:
            num_outputs = 0
            has_loops = len(self.config.looped_stage.loops) > 1
            is_checkpointing = self.gradient_checkpointing and self.training and has_loops
            refuse_misplaced(adapters, tokens.pads, is_checkpointing)
        if tokens.pads is not None:
            inputs_embeds = tokens.pads.put_first(inputs_embeds)
        given = tokens, self.rotary(inputs_embeds, tokens), past_key_values
        in_turn = bool(adapters) or not self.one_pass
        states: list[Tensor] = []  # of all loops but the last
        hidden_states = inputs_embeds
        for stage, loops, spans in schedule(self.config, tokens.num_tokens, num_outputs, in_turn):
            run = Pass(stage, loops, spans, *given)
            if loops.start == 0:
                start, shared = self.stage_input(hidden_states, stage), nothing_shared(stage)
            by_loop = self.run_layers(self.loop_inputs(start, states, carry, run), shared, run, routed, **kwargs)
            *earlier, hidden_states = by_loop.unflatten(1, (len(loops), -1)).unbind(1)
            handed_on = earlier if run.has_last_loop else [hidden_states]
            states += [self.norm(state) if self.config.loop_norm else state for state in handed_on]
            if to_read_out is not None:
                to_read_out += handed_on
        return [*states, self.reach_unread(self.norm(hidden_states))]

    def rotary(self, inputs_embeds: Tensor, tokens: NewTokens) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[B, 1, 1, T, Dh]`."""
        cos, sin = self.rotary_emb(inputs_embeds, tokens.position_ids)
        return cos[:, None, None], sin[:, None, None]

    def stage_input(self, hidden_states: Tensor, stage: Stage) -> Tensor:
        """What a stage starts from, of what the one before puts out: the coda may read it normed (Huginn)."""
        is_coda = stage.layers.start >= self.config.looped_stage.layers.stop
        normed: Tensor = self.norm(hidden_states) if is_coda and self.config.coda_norm else hidden_states
        return normed

    def read_out(self, loop_idx: int, hidden_states: Tensor, tokens: NewTokens, **kwargs: Any) -> Tensor:
        """Read an earlier loop's states `[B, T, D]` out through the coda, as a model of `loop_idx + 1` loops does.

        The coda then runs in every loop, with keys of its own in each; the last loop has run, and fills the cache.
        """
        coda = self.config.stages[-1]._replace(loops=self.config.looped_stage.loops)
        spans = [tokens.num_tokens] * (len(coda.layers) + 1)
        run = Pass(coda, range(loop_idx, loop_idx + 1), spans, tokens, self.rotary(hidden_states, tokens), None)
        start = self.stage_input(hidden_states, coda)
        states: Tensor = self.norm(self.run_layers(start, nothing_shared(coda), run, None, **kwargs))
        if tokens.pads is None:
            return states
        return tokens.pads.give_back(states, before=torch.zeros_like(states[:, :1]))

    def carried_states(self, past_key_values: PLTCacheMixin | None, inputs_embeds: Tensor) -> list[Tensor]:
        """Every loop's state `[B, 1, D]` before the first new token."""
        if past_key_values is not None and past_key_values.carry.positions is not None:
            return [state[:, -1:] for state in past_key_values.carry.states]
        batch_size, _, hidden_size = inputs_embeds.shape
        return [inputs_embeds.new_zeros(batch_size, 1, hidden_size)] * len(self.config.looped_stage.loops)

    def loop_inputs(self, start: Tensor, states: list[Tensor], carry: list[Tensor], run: Pass) -> Tensor:
        """What enters the first layer in a pass, `[B, R * P, D]`.

        In loop 0 that is E, then `a * E + b * shift(H)` of the loop before (paper section 3), or a matrix of both.

        Args:
            start: E `[B, T, D]`, or the output of the stage before.
            states: the states of the loops before, `[B, <= T, D]`.
            carry: every loop's state `[B, 1, D]` before the first of the tokens.
        """
        embeds = tail(start, run.spans[0])
        before = [self.state_before(loop_idx, embeds, states, carry, run) for loop_idx in run.loops]
        inputs = [embeds] * (before[0] is None)
        if read := [state for state in before if state is not None]:
            inputs.append(self.read_both(concatenate([embeds] * len(read), dim=1), concatenate(read, dim=1)))
        return concatenate(inputs, dim=1)

    def state_before(
        self, loop_idx: int, embeds: Tensor, states: list[Tensor], carry: list[Tensor], run: Pass
    ) -> Tensor | None:
        """The state `[B, P, D]` that a loop starts from beside the embeddings `[B, P, D]`; None if there is none."""
        if loop_idx == 0:
            is_core = run.stage.layers.start == self.config.num_prelude_layers
            if not is_core or self.config.initial_state == "none":
                return None
            return embeds if self.config.initial_state == "prelude" else torch.zeros_like(embeds)
        # loops that run together have no states yet; with a device map, states are where the last layer is
        previous: Any = None if len(run.loops) > 1 else states[loop_idx - 1].to(embeds.device)
        if self.config.loop_shift:
            previous = shift(previous, carry[loop_idx - 1].to(embeds.device), run.tokens.follows, run.tokens.pads)
        return tail(previous, run.spans[0])

    def read_both(self, embeds: Tensor, states: Tensor) -> Tensor:
        """Embeddings and states `[B, n, D]` as one input, by the two scales or by a matrix (Huginn)."""
        if self.config.has_adapter:
            mixed: Tensor = self.adapter(concatenate((states, embeds), dim=-1))
            return mixed
        embedding_scale, hidden_scale = self.scales
        return embedding_scale * embeds + hidden_scale * states

    @property
    def scales(self) -> tuple[Tensor | float, Tensor | float]:
        """`a` and `b` of a later loop's input, fixed or learned."""
        if self.config.has_learned_scales:
            return self.embedding_scale, self.hidden_scale
        assert self.config.hidden_scale is not None  # as above
        return self.config.embedding_scale, self.config.hidden_scale

    def reach_unread(self, output: Tensor) -> Tensor:
        """The output, with gradients of 0 for what later loops alone read where one loop of several is trained.

        See `zero_of`.
        """
        if not self.training or len(self.config.looped_stage.loops) > 1:
            return output
        unread: list[Tensor] = []
        if self.config.has_learned_scales:
            unread += [self.embedding_scale, self.hidden_scale]
        if self.config.has_adapter and self.config.initial_state == "none":
            unread.append(self.adapter.weight)
        return sum((0 * parameter.sum().to(output) for parameter in unread), start=output)

    def run_layers(
        self,
        hidden_states: Tensor,
        shared: list[Any],
        run: Pass,
        routed: Routed | None,
        **kwargs: Any,
    ) -> Tensor:
        """One pass `[B, R * P, D]`, P of T tokens, which pruning narrows to `[B, R * Q, D]`.

        `shared` has the shared key and value of each of its layers, which loop 0 leaves to the later loops.
        """
        pads, position_ids = run.tokens.pads, run.tokens.position_ids
        if run.has_last_loop:
            shown, hidden_states = show(hidden_states, run.spans[0], pads)
        for number, layer_idx in enumerate(run.stage.layers):
            num_queries = run.num_queries(layer_idx)
            hidden_states, weights, router_logits, *passed_on = self.layers[layer_idx](
                hidden_states,
                *shared[number],
                run,
                position_ids=tail(position_ids, num_queries),
                **kwargs,
            )
            if routed is not None and router_logits is not None:
                routed |= by_loop_and_layer(router_logits, run, layer_idx)
            if run.stage.shares_keys:
                shared[number] = passed_on
            refuse_other_states(hidden_states)
            if run.has_last_loop:
                layer_input = tail(shown, num_queries)
                shown, hidden_states = show(hidden_states, num_queries, pads)
                self.last_loop_tap(layer_input, shown, weights)
        return hidden_states

    def refuse_unsupported(self, past_key_values: PLTCacheMixin | None, inputs_embeds: Tensor, kwargs: Any) -> None:
        layers: Any = self.layers
        has_gates = layers[self.config.looped_stage.layers.start].self_attn.plt_gate is not None
        refuse_missing(self.config, has_gates, has_adapter="adapter" in self._modules)
        refuse_loops(kwargs)
        if not torch.compiler.is_compiling() and self.config.rope_parameters != self.rope_built_with:
            raise ValueError(
                f"`rope_parameters` must stay those that the model was built with, {self.rope_built_with}, got "
                f"{self.config.rope_parameters}: load it with them, `from_pretrained(..., rope_parameters={{...}})`."
            )
        if kwargs.pop("is_causal", None) is False:
            raise NotImplementedError("`is_causal=False` is not supported: the shift between loops is causal.")
        if past_key_values is not None:
            refuse_unusable(past_key_values, self.config, inputs_embeds)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                raise ValueError("`past_key_values` must be None when training with gradient checkpointing.")


class PLTForCausalLM(PLTPreTrainedModel, PLTGenerationMixin):
    """The decoder and its language-model head.

    Example:
        >>> config = PLTConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
        >>> model = PLTForCausalLM(config).eval()
        >>> output = model.generate(torch.arange(8)[None], max_new_tokens=4, min_new_tokens=4, do_sample=False)
        >>> print(tuple(output.shape))
        (1, 12)
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: PLTConfig):
        super().__init__(config)
        self.model = PLTModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @gets_it_as(OURS)
    @can_return_tuple
    def forward(  # type: ignore[misc]  # see `PLTModel.forward`
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PLTCacheMixin | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PLTCausalLMOutputWithPast:
        """Logits `[B, T, V]` of the last loop, and the loss if there are labels. Arguments as in `PLTModel.forward`.

        Args:
            labels: `[B, T]`, the input ids themselves with -100 where no loss is wanted; the loss shifts them. In
                training, the balance loss of the experts is added to it.
            logits_to_keep: how many of the last positions (0 = all), or indices `[n]` or `[B, n]`, or a bool
                mask `[B, T]`, which gives logits `[number of True, V]`.
        """
        keeps_last = isinstance(logits_to_keep, int) and labels is None and not self.training
        if labels is not None and self.training and self.config.router_aux_loss_coef:  # 0 without experts
            kwargs["output_router_logits"] = True
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_outputs=logits_to_keep if keeps_last and self.can_prune(kwargs) else 0,
            **kwargs,
        )
        logits = self.lm_head(select_positions(outputs.last_hidden_state, logits_to_keep))
        loss: Any = None
        aux_loss = None
        if outputs.router_logits:
            aux_loss = balance_loss(self.config, outputs.router_logits, attention_mask)
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if labels is not None and aux_loss is not None and self.training:
            share = share_of_labels(labels, kwargs.get("num_items_in_batch"))
            assert self.config.router_aux_loss_coef is not None  # the config has filled it in
            loss = loss + self.config.router_aux_loss_coef * share * aux_loss.to(loss.device)
        return PLTCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loop_hidden_states=outputs.loop_hidden_states,
            router_logits=outputs.router_logits,
            **{THEIRS: getattr(outputs, THEIRS)},
        )

    def can_prune(self, kwargs: Any) -> bool:
        """Whether positions may be left out: nobody asks for their states, and masks can be cut to the others."""
        if self.config._attn_implementation == "flex_attention":  # its block masks cannot be cut
            return False
        return not any(kwargs.get(name, getattr(self.config, name, False)) for name in RECORDED)


# The heads build their decoder themselves: transformers' mixins ask `AutoModel`, which refuses a saved folder's code.


class PLTForSequenceClassification(GenericForSequenceClassification, PLTPreTrainedModel):
    """The decoder and the scores of a whole sequence `[B, num_labels]`, read at its last token."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = PLTModel(config)
        # transformers allows None, for models that have no labels
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)  # type: ignore[arg-type]
        self.post_init()


class PLTForTokenClassification(GenericForTokenClassification, PLTPreTrainedModel):
    """The decoder and the scores of each token `[B, T, num_labels]`, after a dropout (`classifier_dropout`)."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = PLTModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", 0.1))
        # transformers allows None, for models that have no labels
        self.score = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()


class PLTForQuestionAnswering(GenericForQuestionAnswering, PLTPreTrainedModel):
    """The decoder and, for each token, how likely an answer starts and ends there, `[B, T]` each."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.model = PLTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


def nothing_shared(stage: Stage) -> list[tuple[None, None]]:
    """The shared keys and values of a stage's layers before loop 0."""
    return [(None, None)] * len(stage.layers)


def warn_of_untrained_loops(config: PLTConfig) -> None:
    """Warn, once, of a model that was loaded with more loops than it was trained with."""
    if config.trained_loops is not None and config.num_loops > config.trained_loops:
        logger.warning_once(
            f"The model is loaded with `num_loops={config.num_loops}`, but was trained with {config.trained_loops}: "
            "loops that no training has seen seldom improve it."
        )


def tell_peft(model_type: str) -> None:
    """Enter a model type in PEFT's tables of default modules, if PEFT has been imported.

    PEFT is not imported here: that takes seconds, and most models have no adapter. So it must be imported before a
    model is built; otherwise it asks for `target_modules`, as for any model that it does not know.
    """
    constants = sys.modules.get("peft.utils.constants")
    tables = {} if constants is None else vars(constants)
    for name, table in tables.items():
        if name.endswith("_MODULES_MAPPING") and "llama" in table:
            table.setdefault(model_type, table["llama"])


def select_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The wanted positions of `[B, T, D]`: how many of the last (0 = all), indices, or a bool mask."""
    # UNTIL transformers 5.24, which has `slice_logits_to_keep` for numbers and indices
    if isinstance(logits_to_keep, int):
        return hidden_states[:, -logits_to_keep:]  # -0 keeps all
    if logits_to_keep.dim() == 1:
        return hidden_states[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden_states[logits_to_keep]
    num_positions = hidden_states.shape[1]
    if (
        not torch.compiler.is_compiling()
        and logits_to_keep.numel()
        and not (-num_positions <= logits_to_keep.min() and logits_to_keep.max() < num_positions)
    ):
        raise IndexError(
            f"`logits_to_keep` must name positions below {num_positions}, got {int(logits_to_keep.max())}."
        )
    return hidden_states.take_along_dim(logits_to_keep[..., None], dim=1)


# `Trainer` asks here whether labels must be shifted when it smooths them, also of a model loaded as remote code
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["plt"] = "PLTForCausalLM"
