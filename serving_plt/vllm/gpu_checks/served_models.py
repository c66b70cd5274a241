# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of further kinds of models and folders in vLLM, next to those of `generate` on the CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from modeling_plt import PLTForCausalLM

from .adapters import add_adapter
from .agreement import IN_BFLOAT16, IN_TF32
from .checked_model import checked_model
from .quantized import INT4, INT8, quantize_with
from .row import Row
from .scale import Scale
from .served_tokens import ServedTokens, save

EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
CORE: dict[str, Any] = {"num_hidden_layers": 4, "num_prelude_layers": 1, "num_coda_layers": 1}
CORE |= {"loop_input": "adapter", "embedding_scale": 1.0, "hidden_scale": None}
ADAPTER = "adapter"  # the folder of one, within that of the model


def with_adapter(model: PLTForCausalLM, folder: Path) -> PLTForCausalLM:
    add_adapter(model, folder / ADAPTER, seed=0, size=0.1)  # its products are about as large as the weights
    return model


def with_one_loop(model: PLTForCausalLM, folder: Path) -> PLTForCausalLM:
    return PLTForCausalLM.from_pretrained(folder, num_loops=1).eval()


@dataclass(frozen=True)
class ServedModel:
    """One that is checked.

    Attributes:
        fields: of its config.
        options: of the engine.
        bound: of log probabilities.
        made: changes the saved folder, and gives the model that says what it is to answer.
        adapter: a folder within the model's, of the adapter of all requests.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    bound: float = IN_TF32
    made: Callable[[PLTForCausalLM, Path], PLTForCausalLM] = lambda model, _: model
    adapter: str | None = None


IN_BF16: dict[str, Any] = {"dtype": "bfloat16"}
MODELS = {
    "experts, float32": ServedModel(EXPERTS),
    "prelude, coda and an adapter of the input, float32": ServedModel(CORE),
    "one loop of a PLT-2, float32": ServedModel({}, {"hf_overrides": {"num_loops": 1}}, made=with_one_loop),
    # the kernels of GPUs for these have no float32
    "LoRA, bf16": ServedModel(
        {}, IN_BF16 | {"enable_lora": True, "max_lora_rank": 8}, IN_BFLOAT16, with_adapter, ADAPTER
    ),
    f"{INT8}, bf16": ServedModel({}, IN_BF16, IN_BFLOAT16, partial(quantize_with, name=INT8)),
    f"{INT4}, float16": ServedModel({}, {"dtype": "float16"}, IN_BFLOAT16, partial(quantize_with, name=INT4)),
}


def rows(scale: Scale) -> Iterator[Row]:
    for name, served in MODELS.items():
        with TemporaryDirectory() as temporary:
            folder, model = Path(temporary), checked_model(**served.fields)
            save(model, folder)
            adapter = None if served.adapter is None else folder / served.adapter
            checks = ServedTokens(scale, folder, served.made(model, folder), adapter)
            options = {"dtype": "float32", "enforce_eager": scale.eager} | scale.engine | served.options
            yield from checks.on(name, options, partial(checks.few_prompts, bound=served.bound))
