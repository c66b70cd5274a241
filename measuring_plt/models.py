# SPDX-License-Identifier: Apache-2.0
"""Models of all rows from one set of random weights, so that memory holds one copy."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

import modeling_plt  # noqa: F401, makes the Auto classes know PLT
from configuration_plt import PLTConfig
from modeling_plt.packed import FORMS, pack_with
from modeling_plt.packed_products import PackedProduct

from .rows import Row

NOT_LLAMAS = ("architectures", "auto_map", "model_type", "transformers_version")


@dataclass(frozen=True)
class Setup:
    """The settings that all rows of a run share; `fields` are those of PLTConfig that no row sets."""

    fields: dict
    device: torch.device
    dtype: torch.dtype
    attn_implementation: str
    compiled: bool = False  # decode with a static cache and a compiled step
    packed: str | None = None  # one of `PACKED`, for all rows but Llama, which is as transformers has it

    @property
    def packed_dtype(self) -> torch.dtype | None:
        """The dtype that `pack_weights` takes."""
        assert self.packed is not None
        return None if self.packed == "same" else getattr(torch, self.packed)


def row_config(fields: dict, row: Row) -> PreTrainedConfig:
    """The config of a row: `PLTConfig`, or `LlamaConfig` with its values."""
    config = PLTConfig(**fields, **row.fields)
    config.num_hidden_layers *= row.depth
    if not row.is_llama:
        return config
    names = set(LlamaConfig.__dataclass_fields__) - set(NOT_LLAMAS)
    return LlamaConfig(**{name: getattr(config, name) for name in names if hasattr(config, name)})


def empty_model(setup: Setup, row: Row) -> PreTrainedModel:
    """The model of a row, on the meta device."""
    config = row_config(setup.fields, row)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=setup.attn_implementation)


def plain_bytes(setup: Setup, row: Row) -> int:
    """Bytes of the weights of a row, not packed."""
    return setup.dtype.itemsize * empty_model(setup, row).num_parameters()


class SharedWeights:
    """Random weights by their names; a row that has a tensor which no earlier row had adds it."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.tensors: dict[str, Tensor] = {}
        self.products: dict[int, PackedProduct] = {}  # by the address of what they packed
        self.generator = torch.Generator(setup.device).manual_seed(0)

    def build(self, row: Row) -> PreTrainedModel:
        """A model in eval mode whose parameters are these tensors; their gradients are its own."""
        model = empty_model(self.setup, row)
        names = model.state_dict()
        for name, parameter in names.items():
            if name not in self.tensors:
                self.tensors[name] = self.random(name, parameter.shape)
        model.load_state_dict({name: self.tensors[name] for name in names}, strict=True, assign=True)
        model.tie_weights()
        # its frequencies are no part of the weights
        rotary = LlamaRotaryEmbedding(model.config)  # type: ignore[arg-type]  # of either kind
        model.model.rotary_emb = rotary.to(self.setup.device)
        return model.eval()

    def build_for_decoding(self, row: Row) -> PreTrainedModel:
        """The same with packed weights, if the run has them: each is packed once for all rows."""
        model = self.build(row)
        if self.setup.packed is None or row.is_llama:
            return model
        dtype = self.setup.packed_dtype

        def product(weight: Tensor) -> PackedProduct:
            if weight.data_ptr() not in self.products:
                self.products[weight.data_ptr()] = FORMS[dtype](weight)
            return self.products[weight.data_ptr()]

        pack_with(model, dtype, product)
        return model

    def random(self, name: str, shape: torch.Size) -> Tensor:
        """Ones for norms, and for the rest numbers as small as those that training starts from."""
        tensor = torch.ones(shape, dtype=self.setup.dtype, device=self.setup.device)
        return tensor if "norm" in name else tensor.uniform_(-0.035, 0.035, generator=self.generator)


def random_ids(length: int, setup: Setup) -> Tensor:
    """Token ids `[1, length]`, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(setup.fields["vocab_size"], (1, length), generator=generator).to(setup.device)
