# SPDX-License-Identifier: Apache-2.0
"""Running a model whose weights stay on disk: a layer holds its weights only while it runs."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from ..plan.computed import find_derivations
from ..reading.checkpoint import StoredTensor


def streamed_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    tensors: dict[str, StoredTensor],
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A Llama-like causal language model that loads each layer, in one dtype, whenever that layer runs.

    Args:
        tensors: by their names in files.
    """
    if dtype == torch.float64:  # which the faster products of experts do not take
        config = copy.deepcopy(config)
        config._experts_implementation = "eager"
    with torch.device("meta"):
        model = model_class(config).eval()
    load = by_parameter(model, tensors, dtype)
    decoder = model.model
    decoder.rotary_emb = type(decoder.rotary_emb)(config=config)  # its tables are computed, not loaded
    for name, _ in decoder.named_parameters(recurse=False):
        set_parameter(model, f"model.{name}", load(f"model.{name}"))
    head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    units = {module: f"model.{name}" for name, module in decoder.named_children()} | {model.lm_head: head}
    del units[decoder.layers], units[decoder.rotary_emb]
    units |= {layer: f"model.layers.{layer_idx}" for layer_idx, layer in enumerate(decoder.layers)}
    for unit, prefix in units.items():
        load_while_running(unit, prefix, load)
    return model


def by_parameter(
    model: PreTrainedModel, tensors: dict[str, StoredTensor], dtype: torch.dtype
) -> Callable[[str], Tensor]:
    """Loads what a parameter of the model holds, which files may have in parts: the experts of a layer, one by one."""
    conversions = get_model_conversion_mapping(model, add_legacy=False)
    for renaming in (each for each in conversions if isinstance(each, WeightRenaming)):
        tensors = {renaming.rename_source_key(name)[0]: tensor for name, tensor in tensors.items()}
    converters = tuple(each for each in conversions if isinstance(each, WeightConverter))
    derivations = {each.name: each for each in find_derivations(tensors, converters, model.config)}

    def load(name: str) -> Tensor:
        stored = derivations[name].compute()[name] if name in derivations else tensors[name].load()
        return stored.to(dtype)

    return load


def load_while_running(unit: nn.Module, prefix: str, load: Callable[[str], Tensor]) -> None:
    """Fill the parameters of a module before it runs, and empty them afterwards."""
    empty = dict(unit.named_parameters())

    def fill(*_) -> None:
        for name in empty:
            set_parameter(unit, name, load(f"{prefix}.{name}"))

    def clear(*_) -> None:
        for name, parameter in empty.items():
            set_parameter(unit, name, parameter)

    unit.register_forward_pre_hook(fill)
    unit.register_forward_hook(clear)


def set_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor under a dotted parameter name."""
    *path, leaf = name.split(".")
    owner = module.get_submodule(".".join(path))
    setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
