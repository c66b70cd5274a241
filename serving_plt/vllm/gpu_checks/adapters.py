# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter of random numbers, in PEFT's format."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from modeling_plt import PLTForCausalLM

RANK, ALPHA = 4, 16
TARGETS = (
    *(f"self_attn.{name}_proj" for name in "qvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "down")),
    "model.adapter",
)


def add_adapter(model: PLTForCausalLM, folder: Path, seed: int, size: float = 0.3) -> None:
    """Write an adapter of numbers of a size as PEFT does, and merge it into the model."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if name.endswith(TARGETS):
            first = size * torch.randn(RANK, module.in_features, generator=generator)
            second = size * torch.randn(module.out_features, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = first
            tensors[f"base_model.model.{name}.lora_B.weight"] = second
            module.weight.data += ALPHA / RANK * second @ first
    names = [target.split(".")[1] for target in TARGETS]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": names, "bias": "none"}
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
