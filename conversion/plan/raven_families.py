# SPDX-License-Identifier: Apache-2.0
"""The three families of `huginn_raven`: how their tensors tell them apart, and what those are in a PLT."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import Chunk, WeightConverter
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from configuration_plt import PLTConfig

from ..error_text import shown, some
from ..reading.checkpoint import Checkpoint
from .heads import PairsToHalves, SplitBiases, SplitHeads
from .shapes import NamesAndShapes

PARTS = ("prelude", "core_block", "coda")
QKV = [f"self_attn.{letter}_proj" for letter in "qkv"]
COMMON = (
    (r"^transformer\.wte\.", "model.embed_tokens."),
    (r"^transformer\.ln_f\.", "model.norm."),
    (r"^transformer\.adapter\.", "model.adapter."),
    (r"\.attn\.proj\.", ".self_attn.o_proj."),
    (r"\.attn\.([qk]_norm)\.", r".self_attn.\1."),
    (r"\.mlp\.proj\.", ".mlp.down_proj."),
)
ROUNDED = 0.01  # of a stored cosine: bfloat16 keeps 0.004, positions of a few thousand in float32 0.0005


@dataclass(frozen=True)
class Family:
    """How one of the three computes."""

    title: str
    norms: tuple[str, ...]  # what its `norm_1`, `norm_2`, ... are in a PLT
    fields: dict[str, Any]  # of `PLTConfig`


HUGINN = Family(
    "Huginn",
    ("input_layernorm", "input_layernorm_2", "post_attention_layernorm", "post_attention_layernorm_2"),
    {"norm_placement": "residual", "coda_norm": True},
)
RETROFIT_LLAMA = Family("Retrofit of Llama", ("input_layernorm", "post_attention_layernorm"), {})
RETROFIT_OLMO = Family(
    "Retrofit of OLMo-2",
    ("input_layernorm_2", "post_attention_layernorm_2"),
    {"norm_placement": "output", "qk_norm": "whole"},
)


def family_of(names: NamesAndShapes) -> Family:
    """The family whose layers have these tensors.

    Raises:
        ValueError: none has.
    """
    if not any(name.startswith("transformer.core_block.") for name in names):
        raise ValueError(
            f"The weights of a `huginn_raven` must be named `transformer.core_block.N.`, got names such as "
            f"{some(sorted(names))}."
        )
    has_four_norms, has_table = any(name.endswith(".norm_3.weight") for name in names), "freqs_cis" in names
    if has_four_norms != has_table:  # as Recurrent-Gemma-2, whose norms and logits are of another form
        raise ValueError(
            "Huginn has four norms in a layer and stores its rotation as `freqs_cis`, Retrofits have neither, got "
            f"{'four norms' if has_four_norms else '`freqs_cis`'} alone."
        )
    if has_four_norms:
        return HUGINN
    return RETROFIT_OLMO if any(name.endswith(".attn.q_norm.weight") for name in names) else RETROFIT_LLAMA


@dataclass(frozen=True)
class Told:
    """What the names and shapes of a checkpoint's tensors tell."""

    family: Family
    counts: dict[str, int]  # of layers, by part
    num_rows: int | None  # of the queries, keys and values of a layer; None where only names are known


def tell(shapes: NamesAndShapes) -> Told:
    rows = shapes.get("transformer.core_block.0.attn.Wqkv.weight")
    counts = {part: count_layers(shapes, part) for part in PARTS}
    return Told(family_of(shapes), counts, rows[0] if rows else None)


def count_layers(names: NamesAndShapes, part: str) -> int:
    found = (re.match(rf"transformer\.{part}\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def renames(told: Told) -> tuple[tuple[str, str], ...]:
    """Layers, which each part counts from 0, are numbered one after another; norms have the names of their places."""
    places = [(part, number) for part, count in told.counts.items() for number in range(count)]
    layers = [
        (rf"^transformer\.{part}\.{number}\.", f"model.layers.{layer_idx}.")
        for layer_idx, (part, number) in enumerate(places)
    ]
    norms = [(rf"\.norm_{number}\.", f".{name}.") for number, name in enumerate(told.family.norms, 1)]
    return (*layers, *norms, *COMMON)


def converters(family: Family) -> tuple[WeightConverter, ...]:
    turn = [PairsToHalves()] if family is HUGINN else []
    return (
        WeightConverter("attn.Wqkv.weight", [f"{name}.weight" for name in QKV], [SplitHeads(), *turn]),
        WeightConverter("attn.qk_bias", [f"{name}.bias" for name in QKV], [SplitBiases(), *turn]),
        WeightConverter("mlp.fc.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(dim=0)]),
    )


def check_rotation(checkpoint: Checkpoint, config: PLTConfig) -> None:
    """Compare the stored table `[1, T, 1, Dh / 2, 2]` of cosines and sines with what a PLT computes.

    Raises:
        ValueError: they differ.
    """
    assert config.head_dim is not None  # the config fills it in
    stored = checkpoint.tensors["freqs_cis"].load().float()
    shape = (1, stored.numel() // config.head_dim, 1, config.head_dim // 2, 2)
    if stored.shape != shape:
        raise ValueError(f"`freqs_cis` must have the shape {shape} by the config, got {shown([*stored.shape])}.")
    rotary = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # reads only what a PLT's has
    tables = rotary(stored, torch.arange(shape[1])[None])
    expected = torch.stack([table[0, :, None, : shape[3]] for table in tables], dim=-1)
    difference = (stored[0] - expected).abs().max().item()
    if not difference <= ROUNDED:
        raise ValueError(
            f"`freqs_cis` must be the rotation of the config's `rope_base`, got one that differs by {difference:.1e}."
        )
