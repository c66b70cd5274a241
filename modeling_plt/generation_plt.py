# SPDX-License-Identifier: Apache-2.0
"""The hooks into `generate()`: which cache it makes, and what it prepares outside of a compiled step."""

from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.generation import GenerationConfig, GenerationMixin, GenerationMode

from .cache_plt import PLTCache, PLTCacheMixin
from .configuration_plt import PLTConfig
from .names_plt import OURS, THEIRS, call_it, gets_it_as
from .refusals_plt import refuse_early_exit, refuse_foreign, refuse_lookup_after, refuse_other_past
from .sequence_plt import NewTokens, read_tokens
from .static_cache_plt import PLTStaticCache

COLLECTED = "_loop_hidden_states"  # where the states of every step travel with the arguments of `generate`


@dataclass
class CollectedStates:
    """The `loop_hidden_states` of the steps of one `generate`."""

    steps: list[tuple[Tensor, ...]] = field(default_factory=list)
    prompt_length: int = 0

    def of(self, output: Any) -> tuple[tuple[Tensor, ...], ...]:
        """Those of the steps that `generate` returns: transformers may take back one that ran ahead."""
        if not self.steps:
            raise NotImplementedError("`output_loop_hidden_states=True` is not supported with `custom_generate`.")
        is_beam_search = hasattr(output, "beam_indices")  # there, all of its steps are returned
        return tuple(self.steps[: None if is_beam_search else output.sequences.shape[1] - self.prompt_length])


class PLTGenerationMixin(GenerationMixin):
    """`GenerationMixin` with a `PLTCache` where transformers would make a cache of its own."""

    config: PLTConfig

    @gets_it_as(THEIRS)
    @wraps(GenerationMixin.generate)
    def generate(self, *args: Any, output_loop_hidden_states: bool = False, **kwargs: Any) -> Any:
        """As everywhere; and with `output_loop_hidden_states=True`, the output has the states of every loop too.

        `loop_hidden_states` is a tuple with an entry per step, each a tuple of L normed states `[B, T, D]`: at first
        of the prompt's T tokens that are not in a given cache (with `prefill_chunk_size`, of its last chunk), then of
        one. Beams and returned sequences are entries of the batch.

        Raises:
            ValueError: such states are wanted without `return_dict_in_generate=True`.
            NotImplementedError: they are wanted of drafts (prompt lookup, assisted decoding) or `custom_generate`.
        """
        if not output_loop_hidden_states:
            return super().generate(*args, **kwargs)
        collected = CollectedStates()
        output: Any = super().generate(*args, **kwargs, **{COLLECTED: collected})
        output["loop_hidden_states"] = collected.of(output)
        return output

    def _validate_model_kwargs(self: Any, model_kwargs: dict[str, Any]) -> None:
        given = {name: value for name, value in model_kwargs.items() if name != COLLECTED}
        super()._validate_model_kwargs(given)  # type: ignore[misc]  # the rest of the model

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Called after every step."""
        if (collected := model_kwargs.get(COLLECTED)) is not None:
            collected.steps.append(outputs.loop_hidden_states)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As everywhere, with the cache under our name, which is the one that PEFT looks for.

        The result of `create_masks_for_generate` is no mask, and gets a name of its own.
        """
        kwargs = call_it(THEIRS, kwargs)
        if kwargs.pop(COLLECTED, None) is not None:
            kwargs["output_loop_hidden_states"] = True
        if kwargs.get("is_first_iteration") and isinstance(kwargs.get(THEIRS), PLTCacheMixin):
            kwargs[THEIRS].is_handed_over = True
        inputs = call_it(OURS, super().prepare_inputs_for_generation(*args, **kwargs))
        if isinstance(inputs.get("attention_mask"), NewTokens):
            inputs["tokens"] = inputs.pop("attention_mask")
        return inputs

    def _prepare_cache_for_generation(  # type: ignore[override]  # which says `bool`, and returns nothing
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *args: Any,
    ) -> None:
        """Give `generate` a `PLTCache` where it would make a `DynamicCache`; refuse what cannot hold a PLT's state."""
        wanted, given = generation_config.cache_implementation, model_kwargs.get(THEIRS)
        refuse_early_exit(self.config, generation_config.assistant_early_exit)
        if COLLECTED in model_kwargs and not generation_config.return_dict_in_generate:
            raise ValueError("`output_loop_hidden_states=True` needs `return_dict_in_generate=True`.")
        if COLLECTED in model_kwargs and generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise NotImplementedError("`output_loop_hidden_states=True` is not supported with drafts.")
        if given is not None:
            refuse_foreign(given)
            refuse_lookup_after(given, generation_mode)
            given.is_handed_over = not generation_config.is_assistant
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
        # the rest of the model is what transformers expects of `self`
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, *args
        )

    def _prefill(
        self: Any,  # the whole model
        input_ids: Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The first step; refuses a cache that does not hold the tokens before it, from which too few would be cut."""
        if (collected := model_kwargs.get(COLLECTED)) is not None:
            collected.prompt_length = input_ids.shape[1]
        cache, mask = model_kwargs.get(THEIRS), model_kwargs.get("attention_mask")
        if cache is not None and (num_past := int(cache.get_seq_length())) > 0:
            # where all are real, transformers has noted the mask's length and dropped it
            num_known: Any = mask.shape[1] if mask is not None else generation_config._mask_length
            embeds = model_kwargs.get("inputs_embeds")  # always all of the conversation
            num_given, num_known = (input_ids.shape[1], num_known) if embeds is None else [embeds.shape[1]] * 2
            refuse_other_past(num_past, num_given, num_known)
        return super()._prefill(  # type: ignore[misc]  # as above
            input_ids,  # type: ignore[arg-type]  # no tensor is a `LongTensor` to mypy
            generation_config,
            model_kwargs,
            *args,
            **kwargs,
        )

    def _prepare_static_cache(
        self: Any,  # the whole model
        cache_implementation: str,
        batch_size: int,
        max_cache_len: int,
        prefill_chunk_size: int | None,
        model_kwargs: dict[str, Any],
    ) -> PLTStaticCache:
        """Give `generate` a `PLTStaticCache`, as long as the longest so far, so that compiled code fits again."""
        self._previous_max_cache_length = max(max_cache_len, getattr(self, "_previous_max_cache_length", 0))
        cache = PLTStaticCache(self.config, self._previous_max_cache_length)
        shape: tuple[int, int] | None = None if prefill_chunk_size is None else self._get_static_cache_init_shape()
        if shape is not None:  # chunked prefill is compiled
            cache.early_initialization(batch_size, *shape, dtype=self.dtype, device=self.device)
        return cache

    @staticmethod
    @gets_it_as(OURS)
    def create_masks_for_generate(
        config: PLTConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: PLTCacheMixin | None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> NewTokens:
        """Read mask, positions and cache outside of a compiled step, because the mask grows with every token."""
        return read_tokens(config, inputs_embeds, attention_mask, position_ids, past_key_values)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Positions `[B, S]` when none are given; a pad has the last real token's, so that decoding continues."""
        if (attention_mask := model_kwargs.get("attention_mask")) is None:
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)

    def _prepare_attention_mask_for_generation(  # type: ignore[override]  # no tensor is a `LongTensor` to mypy
        self, inputs_tensor: Tensor, generation_config: GenerationConfig, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """The mask `[B, S]` when none is given: every `pad_token_id` is a pad, except in a cache, which knows its."""
        mask = super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
        if generation_config.is_assistant:
            return torch.ones_like(mask)  # a mask is left out where all tokens are real
        cache = model_kwargs.get(THEIRS)
        if isinstance(cache, PLTCacheMixin) and (num_past := int(cache.get_seq_length())) > 0:
            # which of the cached tokens are pads no longer matters, only how many
            columns, num_pads = torch.arange(mask.shape[1], device=mask.device)[:num_past], cache.carry.num_pads
            if num_pads is not None:  # of every beam and returned sequence, where the mask is still one of the prompts
                num_pads = num_pads[:: max(1, len(num_pads) // len(mask))][: len(mask)]
            mask[:, :num_past] = columns >= (0 if num_pads is None else num_pads)
        return mask

    @property
    def init_continuous_batching(self) -> NoReturn:
        # servers ask `hasattr` and then fall back to plain generation
        raise AttributeError("Continuous batching is not supported by PLT.")

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            "`generate_batch` is not supported: continuous batching has no place for the carry and the windows of "
            "later loops. Use `generate()`."
        )
