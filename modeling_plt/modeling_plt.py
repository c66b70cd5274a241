# SPDX-License-Identifier: Apache-2.0
"""The Parallel Loop Transformer (arXiv 2510.24824): one stack of layers, run in several loops.

B batch, L loops, T new tokens, S cached + new, H query heads, Hkv KV heads, Dh head_dim, D hidden, V vocabulary.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import wraps

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin, GenerationMode
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_plt import PLTAttention, PLTGate
from .cache_name_plt import CACHE_NAMES, OURS, THEIRS, call_it, gets_it_as
from .cache_plt import PLTCache, PLTCacheMixin
from .configuration_plt import PLTConfig
from .gate_names_plt import read_both_gate_names
from .masks_plt import DENSE, make_masks
from .prefill_plt import needed_positions, tail
from .static_cache_plt import PLTStaticCache

read_both_gate_names(PLTConfig.model_type)

RECORDED = ("output_hidden_states", "output_attentions", "output_loop_hidden_states")


@dataclass
class PLTModelOutputWithPast(BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` and, with `output_loop_hidden_states=True`, the normed states of every loop.

    `loop_hidden_states` is a tuple of L tensors `[B, T, D]`; `lm_head` of each is that loop's logits, and the last
    is `last_hidden_state`. `hidden_states` (N + 1) and `attentions` (N) are those of the last loop.
    """

    loop_hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class PLTCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and `loop_hidden_states`, see `PLTModelOutputWithPast`."""

    loop_hidden_states: tuple[Tensor, ...] | None = None


class PLTDecoderLayer(GradientCheckpointingLayer):
    """A Llama layer that hands loop 0's keys and values to the later loops."""

    def __init__(self, config: PLTConfig, layer_idx: int):
        super().__init__()
        self.self_attn = PLTAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.sandwich_norm = config.sandwich_norm
        if config.sandwich_norm:
            self.input_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.post_attention_layernorm_2 = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        shared_key: Tensor | None,
        shared_value: Tensor | None,
        loops: range,
        num_outputs: int,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run one block `[B, rows, D]`, see `PLTAttention.forward`, which may put out its last positions only.

        Returns those with the shared key and value.

        Those travel as tensors, not through the cache, so that training needs none and checkpointing sees them.
        """
        normed = self.input_layernorm(hidden_states)
        attended, _, shared_key, shared_value = self.self_attn(
            normed, hidden_states, shared_key, shared_value, loops, num_outputs, **kwargs
        )
        hidden_states = tail(hidden_states, attended.shape[1])
        hidden_states = hidden_states + (self.input_layernorm_2(attended) if self.sandwich_norm else attended)
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        hidden_states = hidden_states + (self.post_attention_layernorm_2(output) if self.sandwich_norm else output)
        return hidden_states, shared_key, shared_value


class LastLoopTap(nn.Module):
    """Identity that sees what enters and leaves each layer in the last loop, for `output_hidden_states` to record."""

    def forward(self, layer_input: Tensor, layer_output: Tensor) -> Tensor:
        return layer_output


class PLTPreTrainedModel(PreTrainedModel):
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
        "attentions": OutputRecorder(PLTAttention, index=1),
    }

    def __init__(self, config: PLTConfig, *args, **kwargs):
        config.validate()  # overrides in `from_pretrained` have set one field at a time
        super().__init__(config, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Operations of forward and backward for a batch, 6 per token and weight: the layers count once per loop.

        `Trainer` counts them once, because it asks the model for nothing but its number of parameters.
        """
        repeated = sum(parameter.numel() for parameter in self.base_model.layers.parameters())
        weights = self.num_parameters(exclude_embeddings=True) + (self.config.num_loops - 1) * repeated
        return 6 * inputs[self.main_input_name].numel() * weights

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PLTGate):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        if isinstance(module, PLTModel) and self.config.has_learned_scales:
            init.constant_(module.embedding_scale, self.config.embedding_scale)
            init.constant_(module.hidden_scale, self.config.hidden_scale)


class PLTModel(PLTPreTrainedModel):
    """The decoder without its head: embeddings, the looped layers, the final norm."""

    def __init__(self, config: PLTConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            PLTDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.has_learned_scales:
            self.embedding_scale = nn.Parameter(torch.full((1,), float(config.embedding_scale)))
            self.hidden_scale = nn.Parameter(torch.full((1,), float(config.hidden_scale)))
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.last_loop_tap = LastLoopTap()
        self.gradient_checkpointing = False
        self.post_init()

    @gets_it_as(OURS)
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PLTCacheMixin | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_loop_hidden_states: bool = False,
        num_outputs: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PLTModelOutputWithPast:
        """Run all loops over T tokens (paper section 3).

        Args:
            input_ids: `[B, T]`; or `inputs_embeds` `[B, T, D]`, which then are the embeddings of every loop.
            attention_mask: `[B, S]`, 0 for pads. The real tokens of a row follow each other. Or what `make_masks` made
                of it.
            position_ids: `[B, T]` or `[1, T]`. A token continues the token before it if its position is one more;
                any other position starts a sequence, as in packed documents. Absent, they are counted from the
                mask, or from the length of the cache. In compiled code, packed documents must come without a mask.
            past_key_values: the cache of the tokens so far; extended in place. Also taken under the name `cache`.
                A forward that ends in an exception closes it.
            use_cache: build a cache if none is given.
            output_loop_hidden_states: also return the normed states of every loop.
            num_outputs: how many of the last positions are wanted of the last loop, 0 for all; what only others need
                is not computed, see `needed_positions`, and every output has the positions that were.
            kwargs: for the attention implementation (`cu_seq_lens_q`, ...), and `output_hidden_states`,
                `output_attentions`, `return_dict` as everywhere.

        Raises:
            ValueError: not exactly one of `input_ids` and `inputs_embeds`, no token, shapes that do not fit together,
                a cache under both of its names, or positions that do not continue those in it.
            TypeError: a cache that is not a `PLTCache`.
            NotImplementedError: continuous batching, bidirectional attention, pads between real tokens, packed
                documents behind a cache. The values of a single token are not checked: that would wait for the device
                at every step.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = PLTCache(self.config)
        self.refuse_unsupported(past_key_values, inputs_embeds, kwargs)
        masks = attention_mask  # ready-made by `generate` for compiled decoding
        if not isinstance(masks, dict):
            masks = make_masks(self.config, inputs_embeds, attention_mask, position_ids, past_key_values)
        token_positions = masks["token_positions"]
        carry = self.start_from(past_key_values, inputs_embeds)
        position_ids = token_positions.clamp(min=0) if position_ids is None else position_ids
        cos, sin = self.rotary_emb(inputs_embeds, position_ids)
        kwargs |= {
            "attention_mask": masks["full_attention"],
            "sliding_attention_mask": masks["sliding_attention"],
            "position_embeddings": (cos.unsqueeze(1), sin.unsqueeze(1)),
            "position_ids": position_ids,
            "past_key_values": past_key_values,
        }
        num_tokens = inputs_embeds.shape[1]
        if past_key_values is not None and past_key_values.carry.record_past:
            num_outputs = 0  # any of the tokens may be taken back
        spans = needed_positions(self.config, num_tokens, num_outputs)
        with nullcontext() if past_key_values is None else past_key_values.extending():
            states = self.run_loops(inputs_embeds, carry, masks["follows"].unsqueeze(-1), spans, **kwargs)
            if past_key_values is not None:
                past_key_values.carry.write(states[: len(carry)], token_positions)
        loop_hidden_states = None
        if output_loop_hidden_states:
            earlier = states[:-1] if self.config.loop_norm else [self.norm(state) for state in states[:-1]]
            loop_hidden_states = (*earlier, states[-1])
        return PLTModelOutputWithPast(
            last_hidden_state=states[-1], loop_hidden_states=loop_hidden_states, **{THEIRS: past_key_values}
        )

    def start_from(self, past_key_values: PLTCacheMixin | None, inputs_embeds: Tensor) -> list[Tensor]:
        """The states `[B, 1, D]` that later loops start from, one each."""
        if past_key_values is not None and past_key_values.carry.positions is not None:
            return [state[:, -1:] for state in past_key_values.carry.states]
        batch_size, _, hidden_size = inputs_embeds.shape
        num_carried = self.config.num_loops - 1 if self.config.loop_shift else 0
        return [inputs_embeds.new_zeros(batch_size, 1, hidden_size)] * num_carried

    def run_loops(
        self, inputs_embeds: Tensor, carry: list[Tensor], follows: Tensor, spans: list[list[int]], **kwargs
    ) -> list[Tensor]:
        """Embeddings `[B, T, D]` -> what each of the L loops puts out, its last positions `[B, <= T, D]`.

        With the shift, the loops of a single position depend on the carry alone: they are the rows of one block.
        Several positions, or no shift, take the loops one after another.

        Args:
            carry: the states `[B, 1, D]` before the first position, of every loop but the last; none without a shift.
            follows: `[B, T, 1]`, whether a token continues the one before it, and so takes its state.
            spans: how many of the last positions each loop and layer needs, see `needed_positions`.
        """
        config = self.config
        in_one_pass = config.loop_shift and config.one_pass and inputs_embeds.shape[1] == 1
        blocks = [range(config.num_loops)] if in_one_pass else [range(i, i + 1) for i in range(config.num_loops)]
        states: list[Tensor] = []
        shared = [(None, None)] * config.num_hidden_layers
        for loops in blocks:
            span = spans[loops.start]  # the same for all loops of one position
            rows = [self.loop_input(loop_idx, span[0], inputs_embeds, states, carry, follows) for loop_idx in loops]
            hidden_states, shared = self.run_layers(torch.cat(rows, dim=1), shared, loops, span, **kwargs)
            hidden_states = self.norm(hidden_states) if config.loop_norm else hidden_states
            states += hidden_states.unflatten(1, (len(loops), -1)).unbind(1)
        if not config.loop_norm:
            states[-1] = self.norm(states[-1])
        return states

    def loop_input(
        self,
        loop_idx: int,
        num_positions: int,
        inputs_embeds: Tensor,
        states: list[Tensor],
        carry: list[Tensor],
        follows: Tensor,
    ) -> Tensor:
        """What a loop starts from at the last positions: E, then `a * E + b * shift(H)` of the loop before (paper)."""
        num_tokens = inputs_embeds.shape[1]
        inputs_embeds, follows = tail(inputs_embeds, num_positions), tail(follows, num_positions)
        if loop_idx == 0:
            return inputs_embeds
        device = inputs_embeds.device  # with a device map, the states are where the last layer is
        if not self.config.loop_shift:
            previous = tail(states[loop_idx - 1], num_positions).to(device)
        else:
            previous = carry[loop_idx - 1].to(device)
            if num_tokens > 1:
                previous = tail(torch.cat((previous, states[loop_idx - 1][:, :-1].to(device)), dim=1), num_positions)
            previous = previous.masked_fill(~follows, 0)
        scales = self if self.config.has_learned_scales else self.config
        return scales.embedding_scale * inputs_embeds + scales.hidden_scale * previous

    def run_layers(
        self, hidden_states: Tensor, shared: list, loops: range, span: list[int], **kwargs
    ) -> tuple[Tensor, list]:
        """One pass of a block `[B, R * span[0], D]` through the stack, which narrows to `[B, R * span[N], D]`.

        `shared` holds each layer's shared key and value.
        """
        shared_out = []
        layers = self.layers[: self.config.num_hidden_layers]
        for layer, (key, value), num_outputs in zip(layers, shared, span[1:], strict=True):
            layer_input = hidden_states
            hidden_states, key, value = layer(layer_input, key, value, loops, num_outputs, **kwargs)
            shared_out.append((key, value))
            if loops.stop == self.config.num_loops:
                self.last_loop_tap(tail(layer_input, num_outputs), tail(hidden_states, num_outputs))
        return hidden_states, shared_out

    def refuse_unsupported(self, past_key_values: PLTCacheMixin | None, inputs_embeds: Tensor, kwargs: dict) -> None:
        if inputs_embeds.shape[1] == 0:
            raise ValueError(f"`input_ids` must hold at least one token, got {list(inputs_embeds.shape[:2])}.")
        if self.config.has_gate and self.layers[0].self_attn.plt_gate is None:
            raise ValueError(
                '`loop_attention="gated_window"` needs gates, which this model was built without; load it with this '
                "setting, instead of changing its config."
            )
        if kwargs.pop("is_causal", None) is False:
            raise NotImplementedError("`is_causal=False` is not supported: the shift between loops is causal.")
        if past_key_values is None:
            return
        refuse_foreign(past_key_values)
        past_key_values.refuse_others(inputs_embeds)
        for name, value in past_key_values.made_for.items():
            if value != getattr(self.config, name):
                raise ValueError(
                    f"`past_key_values` was made for `{name}={value}`, the model has "
                    f"`{name}={getattr(self.config, name)}`."
                )
        if past_key_values.why_closed is not None:
            raise NotImplementedError(f"`past_key_values` cannot be continued: {past_key_values.why_closed}")
        if past_key_values.is_compileable and self.config._attn_implementation not in DENSE:
            raise NotImplementedError(
                f"A `PLTStaticCache` needs a mask over its whole memory, which {' and '.join(DENSE)} take, but not "
                f"`{self.config._attn_implementation}`."
            )
        if self.gradient_checkpointing and self.training:
            raise ValueError("`past_key_values` must be None when training with gradient checkpointing.")


class PLTForCausalLM(PLTPreTrainedModel, GenerationMixin):
    """The decoder and its language-model head."""

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
    def forward(
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
            labels: `[B, T]`, the input ids themselves with -100 where no loss is wanted; the loss shifts them.
            logits_to_keep: the last so many positions (0 = all), or indices `[n]` or `[B, n]` of positions, or a bool
                mask `[B, T]`, which gives logits `[number of True, V]`.
        """
        keeps_last = isinstance(logits_to_keep, int) and labels is None and not self.training
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
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return PLTCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loop_hidden_states=outputs.loop_hidden_states,
            **{THEIRS: getattr(outputs, THEIRS)},
        )

    def can_prune(self, kwargs: dict) -> bool:
        """Whether positions may be left out: nobody asks for their states, and masks can be cut to the others."""
        if self.config._attn_implementation == "flex_attention":  # its block masks cannot be cut
            return False
        return not any(kwargs.get(name, getattr(self.config, name, False)) for name in RECORDED)

    generate = gets_it_as(THEIRS)(GenerationMixin.generate)

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args, **kwargs) -> dict:
        """As everywhere, with the cache under our name, which is the one that PEFT looks for."""
        return call_it(OURS, super().prepare_inputs_for_generation(*args, **call_it(THEIRS, kwargs)))

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, *args) -> None:
        """Give `generate` a `PLTCache` where it would make a `DynamicCache`; refuse what cannot hold a PLT's state."""
        wanted, given = generation_config.cache_implementation, model_kwargs.get(THEIRS)
        if given is not None:
            refuse_foreign(given)
            refuse_lookup_behind(given, generation_mode)
        if wanted not in (None, "dynamic", "static"):
            raise NotImplementedError(
                f'`cache_implementation={wanted!r}` is not supported: only the default, a `PLTCache`, and "static", a '
                "`PLTStaticCache`, hold the carry and the windows of later loops."
            )
        if isinstance(given, PLTCache) and not generation_config.is_assistant:
            given.stop_past_recording()
        if given is None and generation_config.use_cache is not False and wanted != "static":
            model_kwargs[THEIRS] = PLTCache(self.config)
            if generation_config.is_assistant:
                model_kwargs[THEIRS].activate_past_recording()
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args)

    def _prepare_static_cache(
        self, cache_implementation, batch_size, max_cache_len, prefill_chunk_size, model_kwargs
    ) -> PLTStaticCache:
        """Give `generate` a `PLTStaticCache`, as long as the longest so far, so that compiled code fits again."""
        self._previous_max_cache_length = max(max_cache_len, getattr(self, "_previous_max_cache_length", 0))
        cache = PLTStaticCache(self.config, self._previous_max_cache_length)
        shape = None if prefill_chunk_size is None else self._get_static_cache_init_shape()
        if shape is not None:  # chunked prefill is compiled
            cache.early_initialization(batch_size, *shape, dtype=self.dtype, device=self.device)
        return cache

    @staticmethod
    @gets_it_as(OURS)
    def create_masks_for_generate(
        config, inputs_embeds, attention_mask, past_key_values, position_ids=None, **kwargs
    ) -> dict[str, Tensor | None]:
        """What `generate` prepares outside of a compiled step: the masks, whose inputs grow with every token."""
        return make_masks(config, inputs_embeds, attention_mask, position_ids, past_key_values)

    @property
    def init_continuous_batching(self):
        # servers ask `hasattr` and then fall back to plain generation
        raise AttributeError("Continuous batching is not supported by PLT.")

    def generate_batch(self, *args, **kwargs):
        raise NotImplementedError(
            "`generate_batch` is not supported: continuous batching has no place for the carry and the windows of "
            "later loops. Use `generate()`."
        )


# The heads build their decoder themselves: transformers' mixins ask `AutoModel`, which refuses a saved folder's code.


class PLTForSequenceClassification(GenericForSequenceClassification, PLTPreTrainedModel):
    """The decoder and the scores of a whole sequence `[B, num_labels]`, read at its last token."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = PLTModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class PLTForTokenClassification(GenericForTokenClassification, PLTPreTrainedModel):
    """The decoder and the scores of each token `[B, T, num_labels]`, behind a dropout (`classifier_dropout`)."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = PLTModel(config)
        self.dropout = nn.Dropout(getattr(config, "classifier_dropout", 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class PLTForQuestionAnswering(GenericForQuestionAnswering, PLTPreTrainedModel):
    """The decoder and, for each token, how likely an answer starts and ends there, `[B, T]` each."""

    def __init__(self, config: PLTConfig):
        PLTPreTrainedModel.__init__(self, config)
        self.model = PLTModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


def refuse_foreign(past_key_values: Cache) -> None:
    if isinstance(past_key_values, PagedAttentionCache):
        raise NotImplementedError(
            "Continuous batching is not supported: its paged cache has no place for the carry and the windows of "
            "later loops. Use `generate()`."
        )
    if not isinstance(past_key_values, PLTCacheMixin):
        raise TypeError(
            f"`past_key_values` must be a `PLTCache` or a `PLTStaticCache`, got `{type(past_key_values).__name__}`, "
            "which has no place for the carry and the windows of later loops. (Prefix tuning passes such a cache: not "
            "supported.)"
        )


def refuse_lookup_behind(past_key_values: PLTCacheMixin, generation_mode: GenerationMode) -> None:
    if generation_mode == GenerationMode.ASSISTED_GENERATION and past_key_values.get_seq_length() > 0:
        raise NotImplementedError(
            "Prompt lookup and assisted decoding cannot continue from a filled `past_key_values`: transformers would "
            "feed the whole prompt into it again. Leave out the cache, or the lookup."
        )


def select_positions(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The positions of `[B, T, D]` whose logits are wanted: the last so many (0 = all), indices, or a bool mask."""
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


# `Trainer` asks here whether labels must be shifted when it smooths them
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["plt"] = "PLTForCausalLM"
